"""docs/importing.md, command by command, on ten small made-up adapters; and what can be asked of such a run."""

import copy
import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import traverse_util

import pdiff
from configs import imported
from pdiff import results as results_lib
from pdiff import run, scenario
from pdiff import workdir as workdir_lib
from pdiff.errors import PdiffError
from pdiff.imports import arrays, lora
from pdiff.measures.weight_space import Reference, gram_of_updates
from pdiff.report import weights_page
from pdiff.tasks.families import folder
from tests import complete
from tests.imports import zoos

ROOT = Path(__file__).parents[2]
SMALLER = (
    "--config.train.steps=400", "--config.train.batch_size=16", "--config.train.checkpoint_every=400",
    "--config.model.width=32", "--config.model.depth=1", "--config.sample.samplers=('posterior_mean',)",
    "--config.condition.text_depth=0", "--config.mean.steps=600", "--config.mean.width=32",
)  # fmt: skip


def command(name: str) -> list[str]:
    """What the page says to type under `<!-- command: NAME -->`."""
    page = (ROOT / "docs" / "importing.md").read_text()
    (found,) = re.findall(rf"<!-- command: {name} -->\n```bash\n(.*?)\n```", page, re.S)
    python, *words = shlex.split(found)
    assert python == "python"
    words = [w.replace("configs/", f"{ROOT}/configs/") for w in words]
    return [sys.executable, *words, *(SMALLER if any("--config=" in w for w in words) else ())]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where the page's three commands were typed. Takes 40 s."""
    home = tmp_path_factory.mktemp("home")
    zoos.loras(home / "my_loras")
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    for name in ("import", "merge", "train", "sample"):
        done = subprocess.run(command(name), cwd=home, env=environment, text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="module")
def results(home):
    return results_lib.read(home / "runs/mine/results.json")


def test_the_results_are_complete_and_hold_no_accuracies(home, results):
    assert complete.check(results) == []
    list(workdir_lib.check(home / "runs/mine"))
    assert not {"splits", "novelty", "base_accuracy", "spread"} & set(results)
    assert results["zoo"] == {"base": 1, "seen": 8, "validation": 1, "unseen": 1}
    assert results["target"] == {"name": "imported", "num_params": 112, "symmetric": False}
    assert set(results["weight_space"]["splits"]["seen"]["controls"]) == {
        "hypernetwork", "soup", "gaussian", "noise", "nearest_seen", "ridge", "wrong_task",
    }  # fmt: skip


def test_what_is_generated_is_nearer_than_every_seen_task(results):
    for split, entry in results["weight_space"]["splits"].items():
        for space in ("updates", "weights"):
            ours = entry["generated"]["posterior_mean"][space]["distance"]["mean"]
            assert ours < 0.7 * entry["controls"]["nearest_seen"][space]["distance"]["mean"], (split, space)
            assert ours < entry["controls"]["soup"][space]["distance"]["mean"]


def test_merges_of_seen_networks_stand_beside_held_out_tasks_alone(home, results):
    page, splits = (home / "runs/mine/report.html").read_text(), results["weight_space"]["splits"]
    assert not any(n.startswith("merged") for n in splits["seen"]["controls"])
    controls = {n: c for n, c in splits["unseen"]["controls"].items() if n.startswith("merged")}
    assert set(controls) == set(results_lib.MERGED) and all(list(c) == ["updates"] for c in controls.values())
    distance = {n: c["updates"]["distance"]["mean"] for n, c in controls.items()}
    assert distance["merged_lerp"] < splits["unseen"]["controls"]["nearest_seen"]["updates"]["distance"]["mean"]
    assert distance["merged_lerp"] < distance["merged_mean"]
    (between,) = results["weight_space"]["merging"]["between"].values()
    assert sorted(between["tasks"]) == ["strength_0.11", "strength_0.33"] and abs(between["t"] - 0.5) < 1e-6
    assert all(f"{d:.3f}" in page for d in distance.values()) and "Beside merges of seen networks" in page


def test_the_report_says_whether_merges_come_as_near(results):
    changed = copy.deepcopy(results)
    unseen = changed["weight_space"]["splits"]["unseen"]
    best = min(c["updates"]["distance"]["mean"] for n, c in unseen["controls"].items() if n in results_lib.MERGED)
    for ours, said in ((best / 2, "No merge of seen networks comes as near"), (best * 2, "comes as near or nearer")):
        unseen["generated"]["posterior_mean"]["updates"]["distance"]["mean"] = ours
        (line,) = weights_page.standing(changed)
        assert said in line and f"{ours:.3f}" in line and f"{best:.3f}" in line
    del changed["weight_space"]["splits"]["unseen"]
    assert weights_page.standing(changed) == [] and "Beside merges" not in weights_page.render(changed, [])


def test_asked_for_what_no_task_had_the_update_is_right(home):
    """Between the tasks the truth is known, as the adapters were made by a formula."""
    made = [lora.read(home / "new_loras" / f"sample_{i}", arrays.Budget(1)) for i in range(2)]
    networks = {p: np.stack([tree[p] for tree, *_ in made]) for p in made[0][0]}

    def truth(strength):
        factors = {m: zoos.update(strength, i) for i, m in enumerate(zoos.MODULES)}
        return {f"lora/{m}/{k}": f["BA".index(k)][None].astype(np.float32) for m, f in factors.items() for k in "AB"}

    seen = {p: np.concatenate([truth(s)[p] for s in np.linspace(0, 1, 10)]) for p in networks}
    reference = Reference.of(gram_of_updates, truth(0.50), np.zeros(1, int), seen, np.arange(10))
    assert (reference.measures(networks, np.zeros(2, int))["distance"] < 0.6 * reference.nearest(truth(0.50))[0]).all()
    asked = json.loads((home / "new_loras" / "pdiff.json").read_text())
    assert asked["prompt"] == "strength 0.50" and len(asked["model"]) == 64
    assert made[0][1].config == zoos.lora_config(inference_mode=True)


def test_a_merge_needs_the_import_alone(home):
    _, adapter, _ = lora.read(home / "merged" / "sample_0", arrays.Budget(1))
    assert adapter.rank == zoos.RANK and adapter.config["base_model_name_or_path"] == "made-up"
    assert json.loads((home / "merged" / "pdiff.json").read_text())["method"] == "ties"


def test_the_report_says_what_the_results_say(home, results):
    page, table = ((home / "runs/mine" / n).read_text() for n in ("report.html", "table.md"))
    unseen = results["weight_space"]["splits"]["unseen"]["generated"]["posterior_mean"]["updates"]["distance"]
    assert f"{unseen['mean']:.3f}" in page and f"{unseen['mean']:.4f} ± {unseen['sem']:.4f}" in table
    assert "://" not in re.sub(r"http://www.w3.org\S*", "", page) and len(page) < 1_000_000
    results["weight_space"]["splits"]["seen"]["imported_accuracy"] = {
        "mean": 0.875,
        "sem": 0,
        "min": 0,
        "max": 1,
        "n": 8,
    }
    assert "0.875" in weights_page.render(results, [])
    assert "0.875" not in page


def test_names_from_outside_are_escaped_and_drawn_as_they_are(results):
    """Two dollars would be a formula to matplotlib, and this one an error."""
    evil = "<script>alert(1)</script>\"'&$\\frac{$"
    hostile = copy.deepcopy(results)
    hostile["command"] = hostile["commit"] = hostile["target"]["name"] = hostile["config"]["zoo"]["dir"] = evil
    for entry in hostile["weight_space"]["splits"].values():
        for task in entry["per_task"]:
            task["task"] = evil
    text = weights_page.render(hostile, [weights_page.per_task(hostile)])
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text and "script-src 'none'" in html.unescape(text)
    assert "<script" not in weights_page.per_task(hostile).svg and weights_page.tables(hostile)


def test_python_gives_the_same_and_refuses_what_needs_images(home, results):
    loaded = pdiff.load(home / "runs/mine")
    networks = loaded.sample(prompt="strength 0.50", num_samples=2)
    written, *_ = lora.read(home / "new_loras" / "sample_0", arrays.Budget(1))
    for path, value in traverse_util.flatten_dict(networks, sep="/").items():
        np.testing.assert_allclose(value[0], written[path], atol=1e-4)
    with pytest.raises(PdiffError, match="no images"):
        loaded.accuracy(networks, 0)
    with pytest.raises(PdiffError, match="cannot be run"):
        loaded.apply(networks, np.zeros((1, 1)))
    with pytest.raises(PdiffError, match="support: networks that were imported without images"):
        loaded.adapt(np.zeros((2, 1), np.float32), np.zeros(2, int))
    with pytest.raises(PdiffError, match="--support: networks that were imported without images"):
        folder.read_support(home, loaded.family)
    with pytest.raises(PdiffError, match="--mode=audit"):
        run.audit(home / "runs/mine")


def test_damaged_facts_are_not_believed(home, tmp_path):
    shutil.copytree(home / "runs/mine" / scenario.IMPORTED, tmp_path / scenario.IMPORTED)
    path = tmp_path / scenario.IMPORTED / scenario.FACTS
    path.write_text(path.read_text().replace("strength", "strangth", 1))
    with pytest.raises(PdiffError, match="damaged"):
        scenario.family_and_target(imported.get_config(), tmp_path)


def test_plain_networks_have_no_column_of_ranks(results):
    plain = copy.deepcopy(results)
    plain["weight_space"] |= {"spaces": ["weights"], "merging": {"densities": {}, "between": {}}}
    for entry in plain["weight_space"]["splits"].values():
        kept = {n: c for n, c in entry["controls"].items() if n in ("merged_lerp", "merged_slerp")}
        others = {n: c for n, c in entry["controls"].items() if n not in results_lib.MERGED}
        entry["controls"] = others | {n: {"weights": c["updates"]} for n, c in kept.items()}
    table = weights_page.beside(plain)
    assert table["headings"] == ["unseen: distance"]
    assert [title for title, _, _ in table["rows"]] == [
        "generated, posterior mean", "nearest seen", "ridge", "merge: line between two", "merge: arc between two",
    ]  # fmt: skip
    assert complete.check(plain) == [] and "cut to" not in weights_page.render(plain, [])
