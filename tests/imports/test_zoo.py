"""From a folder to the zoo of a run: whole, exact, and with the right tasks; or not at all."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util

from configs import imported
from pdiff import config as config_lib
from pdiff import run, scenario
from pdiff import workdir as workdir_lib
from pdiff.errors import Faults, PdiffError
from pdiff.generator.generator import suited_token_dim
from pdiff.imports import tasks
from pdiff.system import exits
from pdiff.training import stages
from pdiff.zoo import store
from tests.fuzz_import import config as exact_config
from tests.fuzz_import import fuzz
from tests.imports import zoos


def networks_of(workdir, config):
    return store.read(workdir / "zoo", config_lib.zoo_fingerprint(config))


def flat(networks, row):
    return traverse_util.flatten_dict(jax.tree.map(lambda a: a[row], networks.params), sep="/")


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".msgpack", ""])
def test_plain_networks_come_in_bit_for_bit(tmp_path, ending):
    made = zoos.networks(tmp_path / "source", ending)
    config = exact_config()
    run.import_networks(config, tmp_path / "source", None, tmp_path / "w")
    family, target = scenario.family_and_target(config, tmp_path / "w")
    seen = networks_of(tmp_path / "w", config)["seen"]
    assert [t.name for t in family.split("seen")] == sorted(made) and len(seen) == 4
    assert {t.descriptions for t in family.tasks} == {(f"task {i}",) for i in range(4)}
    for task in family.tasks:
        kept = flat(seen, int(np.flatnonzero(seen.task == task.id)[0]))
        for path, value in made[task.name].items():
            np.testing.assert_array_equal(kept[path], value)
    assert jax.tree.map(lambda a: a.shape, target.abstract()) == {
        "params": {"Dense_0": {"bias": (2,), "kernel": (3, 2)}}
    }


def test_adapters_keep_their_updates_and_tasks_are_held_out(tmp_path):
    made = zoos.loras(tmp_path / "source")
    config = imported.get_config()
    run.import_networks(config, tmp_path / "source", None, tmp_path / "w")
    family, _ = scenario.family_and_target(config, tmp_path / "w")
    assert {s: len(family.split(s)) for s in ("seen", "validation", "unseen")} == {
        "seen": 8,
        "validation": 1,
        "unseen": 1,
    }
    networks = networks_of(tmp_path / "w", config)
    for task in family.tasks:
        own, given = networks[task.split], made[task.name]
        kept = flat(own, int(np.flatnonzero(own.task == task.id)[0]))
        for module in zoos.MODULES:
            b, a = (given[f"base_model.model.{module}.lora_{k}.weight"].astype(float) for k in "BA")
            left, right = (kept[f"lora/{module}/{k}"].astype(float) for k in "BA")
            np.testing.assert_allclose(left @ right, b @ a, atol=1e-5)
            np.testing.assert_allclose(left.T @ left, right @ right.T, atol=1e-4)
    assert scenario.load(tmp_path / "w").adapter["config"] == zoos.lora_config()


def test_signs_in_names_are_kept_and_tasks_with_the_same_description_are_told(tmp_path, monkeypatch):
    for i, name in enumerate(("slider_-0.50", "slider_0.50", "a-b", "a_B", "rest")):
        zoos.save(tmp_path / "source" / f"{name}.npz", zoos.network(i))
    config, told = exact_config(), []
    monkeypatch.setattr(tasks.log, "warning", lambda message, *args: told.append(message % args))
    run.import_networks(config, tmp_path / "source", None, tmp_path / "w")
    family, _ = scenario.family_and_target(config, tmp_path / "w")
    assert {t.descriptions[0] for t in family.tasks} == {"slider -0.50", "slider 0.50", "a b", "a B", "rest"}
    assert any("cannot be told apart by it: a-b = a_B ('a b'); describe them" in line for line in told)


def test_a_manifest_says_what_tasks_are(tmp_path):
    zoos.networks(tmp_path / "source", ".npz", 5)
    rows = [
        {"file": "task_0/network.npz", "task": "low", "description": ["a low one", "low"],
         "factors": {"x": 1.0}, "split": "seen"},
        {"file": "task_1/network.npz", "task": "low", "accuracy": 0.5},
        {"file": "task_2/network.npz", "task": "high", "description": "high", "factors": {"x": 3.0}, "split": "seen"},
        {"file": "task_3/network.npz", "task": "middle", "factors": {"x": 2.0}, "split": "interp", "accuracy": 0.75},
    ]  # fmt: skip
    (tmp_path / "elsewhere.json").write_text(json.dumps(rows))
    run.import_networks(exact_config(), tmp_path / "source", tmp_path / "elsewhere.json", tmp_path / "w")
    family, _ = scenario.family_and_target(exact_config(), tmp_path / "w")
    assert [(t.name, t.split, t.factors, t.descriptions) for t in family.tasks] == [
        ("low", "seen", (1.0,), ("a low one", "low")), ("high", "seen", (3.0,), ("high", "high")),
        ("middle", "interp", (2.0,), ("middle", "middle")),
    ]  # fmt: skip
    facts = scenario.load(tmp_path / "w")
    assert facts.accuracies == {"interp": [0.75]}  # of the seen ones only one is known
    np.testing.assert_array_equal(networks_of(tmp_path / "w", exact_config())["seen"].task, [0, 0, 1])


def test_several_faults_are_told_at_once_and_nothing_is_written(tmp_path):
    source = tmp_path / "source"
    zoos.networks(source, ".safetensors", 6)
    zoos.save(source / "task_1" / "network.safetensors", zoos.network(1) | {"extra": np.ones(2, np.float32)})
    zoos.save(source / "task_2" / "network.safetensors", {k: v.astype(np.float16) for k, v in zoos.network(2).items()})
    (source / "task_3" / "network.safetensors").write_bytes(b"\x80\x04nonsense")
    (tmp_path / "secret.safetensors").write_bytes((source / "task_0" / "network.safetensors").read_bytes())
    (source / "task_4" / "network.safetensors").unlink()
    (source / "task_4" / "network.safetensors").symlink_to(tmp_path / "secret.safetensors")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Faults) as e:
        run.import_networks(exact_config(), source, None, tmp_path / "w")
    told = {line.split("/")[0]: line for line in e.value.lines}
    assert list(told) == ["task_1", "task_2", "task_3", "task_4"]
    assert "has also 'extra'" in told["task_1"] and "float16" in told["task_2"]
    assert "is a pickle" in told["task_3"] and "leads out of" in told["task_4"]
    assert sorted(tmp_path.rglob("*")) == before


def test_twins_adapters_that_disagree_and_too_few_are_refused(tmp_path):
    zoos.networks(tmp_path / "twins", ".npz", 2)
    shutil.copy(tmp_path / "twins/task_0/network.npz", tmp_path / "twins/task_1/network.npz")
    with pytest.raises(Faults, match="task_1/network.npz: is bit for bit task_0/network.npz"):
        run.import_networks(exact_config(), tmp_path / "twins", None, tmp_path / "w")
    zoos.loras(tmp_path / "loras", 3)
    zoos.lora(tmp_path / "loras" / "odd", 0.7, lora_alpha=32, base_model_name_or_path="another")
    with pytest.raises(Faults, match="odd: .*base_model_name_or_path is 'made-up', not 'another'|the scale of"):
        run.import_networks(exact_config(), tmp_path / "loras", None, tmp_path / "w")
    zoos.networks(tmp_path / "few", ".npz", 2)
    with pytest.raises(PdiffError, match="tasks.num_unseen"):
        run.import_networks(imported.get_config(), tmp_path / "few", None, tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_workdir_takes_one_import_alone(tmp_path):
    zoos.networks(tmp_path / "source", ".npz")
    config = exact_config()
    run.import_networks(config, tmp_path / "source", None, tmp_path / "w")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "w").rglob("*")}
    run.import_networks(config, tmp_path / "source", None, tmp_path / "w")  # says so, and does nothing
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "w").rglob("*")} == before
    zoos.save(tmp_path / "source" / "task_9.npz", zoos.network(9))
    with pytest.raises(PdiffError, match="not empty"):
        run.import_networks(config, tmp_path / "source", None, tmp_path / "w")
    with pytest.raises(PdiffError, match="--mode=import --source=DIR comes first"):
        scenario.family_and_target(config, tmp_path / "nothing")


def test_after_an_import_what_it_did_not_depend_on_may_change_until_training_starts(tmp_path):
    zoos.networks(tmp_path / "source", ".npz")
    config, workdir = exact_config(), tmp_path / "w"
    run.import_networks(config, tmp_path / "source", None, workdir)
    longer, other = config.copy_and_resolve_references(), config.copy_and_resolve_references()
    with longer.unlocked(), other.unlocked():
        longer.train.steps += 1
        other.zoo.align = "balanced"
    for changed in (config, longer):
        workdir_lib.keep_config(changed, workdir)
        assert config_lib.read(workdir / "config.json").train.steps == changed.train.steps
        run.import_networks(changed, tmp_path / "source", None, workdir)
    with pytest.raises(PdiffError, match="zoo.align is 'balanced' here and 'none' there; import them again with these"):
        workdir_lib.keep_config(other, workdir)
    with pytest.raises(PdiffError, match="import them again with these"):
        run.import_networks(other, tmp_path / "source", None, workdir)
    (workdir / stages.MEAN).mkdir()  # training has begun
    with pytest.raises(PdiffError, match="train.steps is .* use another --workdir"):
        workdir_lib.keep_config(config, workdir)


def test_images_are_not_asked_for_where_there_are_none(tmp_path):
    zoos.networks(tmp_path / "source", ".npz")
    for field, value in (
        ("mean.functional_weight", 1.0),
        ("condition.use", ("id", "background")),
        ("target.name", "mlp"),
    ):
        config = exact_config()
        part, name = field.split(".")
        with config.unlocked():
            config[part][name] = value
            config.sample.condition = ("id",) if name == "use" else config.sample.condition
        with pytest.raises(PdiffError, match=field):
            run.import_networks(config, tmp_path / "source", None, tmp_path / "w")


def test_networks_of_an_own_family_are_measured_on_its_images(tmp_path, tiny_config, tiny_zoo, tiny):
    """Some tasks of the tiny zoo go out as files and come in again, with the accuracies that they had. Takes 10 s."""
    names = {}
    for split in ("seen", "unseen"):
        for task in tiny.family.split(split)[:2]:
            for row in np.flatnonzero(tiny_zoo[split].task == task.id):
                path = tmp_path / "source" / task.name / f"{row}.safetensors"
                zoos.save(path, {k: np.ascontiguousarray(v) for k, v in flat(tiny_zoo[split], row).items()})
                names.setdefault(task.name, []).append(tiny_zoo[split].test_accuracy[row])
    run.import_networks(tiny_config, tmp_path / "source", None, tmp_path / "w")
    family, _ = scenario.family_and_target(tiny_config, tmp_path / "w")
    assert {t.name for t in family.tasks} == set(names) and set(family.arcs) == {"unseen"}
    networks = networks_of(tmp_path / "w", tiny_config)
    assert set(networks) == {"base", "task_blind", "seen", "unseen"}
    for task in family.tasks:
        own = networks[task.split]
        np.testing.assert_allclose(own.test_accuracy[own.task == task.id], names[task.name], atol=1e-6)
    zoos.save(tmp_path / "source" / "rotation_999" / "a.safetensors", {"w": np.ones(2, np.float32)})
    with pytest.raises(PdiffError):
        run.import_networks(tiny_config, tmp_path / "source", None, tmp_path / "v")
    shutil.rmtree(tmp_path / "source" / "rotation_999")
    next(iter((tmp_path / "source").glob("*/*"))).unlink()
    with pytest.raises(PdiffError, match="allowed: as many each"):
        run.import_networks(tiny_config, tmp_path / "source", None, tmp_path / "v")


def test_token_width_grows_with_networks():
    for size, most in ((1_000, 64), (10_000, 64), (300_000, 512), (4_000_000, 1024), (16_000_000, 2048)):
        width = suited_token_dim(size)
        assert -(-size // width) <= most and width & (width - 1) == 0


def test_a_few_damaged_files_and_manifests(tmp_path, capfd):
    """A short run of `tests.fuzz_import`. Takes 10 s."""
    ended = fuzz(40, 30, tmp_path, first=500)
    counts = {
        how: sum(n for k, n in ended.items() if isinstance(k, tuple) and k[1] == how) for how in ("imported", "refused")
    }
    assert counts["imported"] + counts["refused"] == 70 and min(counts.values()) >= 5
    assert "Traceback" not in capfd.readouterr().err


def test_facts_are_plain_json(tmp_path):
    zoos.networks(tmp_path / "source", ".npz")
    run.import_networks(exact_config(), tmp_path / "source", None, tmp_path / "w")
    facts = scenario.load(tmp_path / "w")
    assert json.loads(json.dumps(dataclasses.asdict(facts))) == dataclasses.asdict(facts)
    assert facts.leaves["params/Dense_0/kernel"] == [[3, 2], "float32", "params/Dense_0/kernel", "none"]


def test_faults_are_a_line_each_and_not_too_many(capsys):
    with pytest.raises(SystemExit) as e, exits.said():
        raise Faults("my_zoo", ["a: is\nbroken", "b: is broken", *(f"{i}: is {i}" for i in range(24))])
    lines = capsys.readouterr().err.splitlines()
    assert e.value.code == 1 and len(lines) == 22
    assert lines[0] == "pdiff: error: my_zoo: 26 faults, nothing was written"
    assert lines[1] == "  a, b: is broken" and lines[-1] == "  and 5 more"
