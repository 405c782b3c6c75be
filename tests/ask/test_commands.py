"""`--mode=sample`, `adapt` and `publish`: what is written and said, and that a refused request leaves nothing."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from PIL import Image

from pdiff import results as results_lib
from pdiff.ask import api, commands
from pdiff.errors import PdiffError
from pdiff.generator import generator, published
from pdiff.system import files
from pdiff.system.checkpoint import Checkpoints
from pdiff.tasks.families.folder import read_support
from pdiff.tasks.families.rotation import rotation_matrix
from pdiff.training.state import init_state, make_optimizer

PROMPT = "digits rotated by 75 degrees"
VAGUE = "digits rotated by between 60 and 90 degrees"


@pytest.fixture
def ask(published_folder, tmp_path):
    """Samples into `tmp_path`; returns arrays and metadata of the file."""

    def ask(**given):
        out = tmp_path / "nets.safetensors"
        commands.sample(published_folder, **({"num_samples": 2, "sampler": None, "seed": 0, "out": str(out)} | given))
        with safetensors.safe_open(out, "numpy") as file:
            return safetensors.numpy.load_file(out), file.metadata()

    return ask


def test_a_file_says_what_was_asked_for_and_what_to_expect(ask, loaded, published_folder):
    arrays, facts = ask(prompt=PROMPT, seed=7)
    expected = loaded.sample(prompt=PROMPT, num_samples=2, seed=7)
    np.testing.assert_array_equal(arrays["params/Dense_0/kernel"], expected["params"]["Dense_0"]["kernel"])
    assert facts["prompt"] == PROMPT and facts["seed"] == "7" and facts["sampler"] == "posterior_mean"
    assert facts["model"] == files.sha256(published_folder / files.MANIFEST)
    told = json.loads(facts["expected_accuracy"])
    assert "unseen" in told["basis"]
    assert told["mean"] == pytest.approx(loaded.expect(prompt=PROMPT).mean)
    assert facts["understood"] == loaded.understood(PROMPT).said
    assert facts["ignored"] == facts["doubt"] == facts["between"] == "" and facts["forced"] == "false"
    assert facts["where"] == "unseen, degrees from 60 to 90" and facts["task"] == "rotation_75"


def test_what_was_read_is_said(ask, loaded, tmp_path, said):
    ask(prompt=PROMPT)
    told = f"read as {loaded.understood(PROMPT).said}; unseen, degrees from 60 to 90\n"
    assert told in said() and "differ little" in said()
    assert f"{tmp_path / 'nets.safetensors'}, with nets.safetensors.sha256 beside it" in said()


def test_words_that_changed_nothing_are_named(ask, said):
    _, facts = ask(prompt="kindly, digits just 75 degrees clockwise")
    assert "285 degrees" in facts["understood"] and facts["ignored"] == "kindly, just"
    assert f"read as {facts['understood']}" in said() and "words that changed nothing: kindly, just" in said()


def test_a_task_by_its_number_is_said(ask, loaded, said):
    task = loaded.family.split("unseen")[0]
    _, facts = ask(task=str(task.id))
    assert f"task {task.name} (id {task.id}, unseen): '{task.descriptions[0]}'" in said()
    assert "counts the tasks from 0" in said() and facts["task"] == task.name and facts["prompt"] == ""
    assert facts["where"] == "unseen"


def test_two_tasks_and_a_weight(ask, loaded):
    a, b = (t.name for t in loaded.family.split("seen")[:2])
    arrays, facts = ask(between=f"{a}, {b},0.25")
    expected = loaded.sample(between=(a, b, 0.25), num_samples=2)
    np.testing.assert_array_equal(arrays["params/Dense_1/bias"], expected["params"]["Dense_1"]["bias"])
    assert facts["between"] == f"{a},{b},0.25" and json.loads(facts["expected_accuracy"])["mean"] == 0.85


def test_what_is_not_known_is_said(ask, said):
    _, facts = ask(prompt="classify the mood of songs", force=True)
    assert facts["expected_accuracy"] == "" and "songs" in facts["doubt"] and facts["forced"] == "true"
    assert "warning: prompt 'classify the mood of songs': " in said() and "differ little" not in said()
    assert "what accuracy to expect is not known" in said()


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "--prompt, --task, --between: give one of them; for example --prompt=.digits rotated by .* or --prompt="),
        ({"prompt": PROMPT, "task": "x"}, "give one of them"),
        ({"prompt": "tourne les chiffres"}, "prompt: 'tourne les chiffres'"),
        ({"prompt": " "}, "got ' ', which has no word in it"),
        ({"prompt": "?"}, "got '[?]', which has no word in it"),
        (
            {"prompt": PROMPT, "out": "x.pt"},
            "--out: got 'x.pt', which ends as no format does",
        ),
        ({"between": "0,1"}, "got '0,1'; allowed: a,b,w"),
        ({"between": "0,1,half"}, "allowed: a,b,w"),
        ({"between": "0,1,2"}, "weight 2.0; allowed: a number from 0 to 1"),
        ({"between": "0,nobody,0.5"}, "'nobody'; allowed: an id"),
        ({"prompt": "digits rotated by between 10.5 and 11.5 degrees"}, "where there is no task"),
        ({"task": "0", "out": None}, "--out: missing"),
        ({"task": "0", "out": "/nowhere/x"}, "no existing folder"),
    ],
)
def test_refused_requests_write_nothing(ask, tmp_path, given, message):
    with pytest.raises(PdiffError, match=message):
        ask(**given)
    assert list(tmp_path.iterdir()) == []


def test_a_vague_prompt_is_said_to_be_understood_and_what_each_network_is_good_for(ask, loaded, said):
    arrays, facts = ask(prompt=VAGUE, sampler="ddim", seed=3)
    expected = loaded.sample(prompt=VAGUE, num_samples=2, sampler="ddim", seed=3)
    np.testing.assert_array_equal(arrays["params/Dense_0/kernel"], expected["params"]["Dense_0"]["kernel"])
    told = "any angle from 60 to 90 degrees (30 of 360)"
    assert facts["understood"] == told and facts["prompt"] == VAGUE
    assert json.loads(facts["expected_accuracy"])["basis"].endswith(f"tasks of {told}")
    assert f"read as {told}; each network is drawn from that set" in said()
    for i, one in enumerate(loaded.suited(expected, VAGUE)):
        assert f"network {i}: best for '{one.description}', {one.accuracy:.3f} there" in said()
        assert json.loads(facts["best"])[i] == {"for": one.description, "accuracy": round(one.accuracy, 4)}


def test_the_sampler_in_a_file_is_the_one_that_drew_it(ask, loaded, tmp_path):
    assert ask(prompt=VAGUE)[1]["sampler"] == "heun"
    for path in tmp_path.iterdir():
        path.unlink()
    assert ask(prompt=PROMPT)[1]["sampler"] == "posterior_mean"


def test_beside_a_training_a_file_names_the_checkpoint_that_made_its_networks(published_folder, tmp_path, monkeypatch):
    workdir, out, real = tmp_path / "run", tmp_path / "nets.safetensors", api.load
    workdir.mkdir()
    for name in ("generator", "config.json", "results.json"):  # all of a run but its checkpoints
        copy = shutil.copytree if (published_folder / name).is_dir() else shutil.copy
        copy(published_folder / name, workdir / name)
    static = generator.load(workdir)
    params = jax.tree.map(jax.numpy.asarray, published.restore_params(static, published_folder))
    checkpoints = Checkpoints(workdir / "checkpoints", 2)
    checkpoints.prepare()

    def train(step, factor):
        state = init_state(jax.tree.map(lambda p: p * factor, params), make_optimizer(static.config.train))
        checkpoints.save(step, state.parts, {})

    def load(where):
        loaded = real(where)
        train(8, 0.5)
        return loaded

    train(4, 1.0)
    digest = files.sha256(checkpoints.directory / "4" / files.MANIFEST)
    monkeypatch.setattr(api, "load", load)
    commands.sample(workdir, prompt=PROMPT, num_samples=1, out=str(out))
    assert checkpoints.steps() == [4, 8]
    with safetensors.safe_open(out, "numpy") as file:
        assert file.metadata()["model"] == digest
    newer = real(workdir)
    assert newer.model == files.sha256(checkpoints.directory / "8" / files.MANIFEST) != digest
    kernel = safetensors.numpy.load_file(out)["params/Dense_0/kernel"]
    assert np.abs(newer.sample(prompt=PROMPT)["params"]["Dense_0"]["kernel"] - kernel).max() > 1e-4


@pytest.fixture
def folder(loaded, tmp_path):
    """Two images of each class, turned by 75 degrees, in folders that are named by it."""
    data = loaded.family.data["train"]
    for label, name in enumerate(loaded.family.classes):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in np.flatnonzero(data.y == label)[:2]:
            pixels = np.clip(data.x[i] @ rotation_matrix(75.0) * 255, 0, 255).round().astype(np.uint8)
            Image.fromarray(pixels.reshape(8, 8)).save(tmp_path / "mine" / name / f"{i}.png")
    return tmp_path / "mine"


@pytest.fixture
def adapted(published_folder, folder, tmp_path):
    """Adapts to the folder, into `tmp_path`; returns arrays and metadata of the file."""

    def adapted(**given):
        out = tmp_path / "net.safetensors"
        usual = {"support": str(folder), "num_samples": 4, "seed": 5, "out": str(out)}
        commands.adapt(published_folder, **(usual | given))
        with safetensors.safe_open(out, "numpy") as file:
            return safetensors.numpy.load_file(out), file.metadata()

    return adapted


def test_an_adapted_network_is_one_network_in_a_file_that_says_of_what(adapted, loaded, folder, published_folder, said):
    arrays, facts = adapted(prompt=PROMPT, steps=3)
    images, labels = read_support(folder, loaded.family)
    assert np.bincount(labels).tolist() == [2] * 10
    expected = loaded.adapt(images, labels, prompt=PROMPT, num_samples=4, steps=3, seed=5)
    np.testing.assert_array_equal(arrays["params/Dense_0/kernel"], expected["params"]["Dense_0"]["kernel"])
    assert arrays["params/Dense_0/kernel"].shape == (1, 64, 32)
    assert facts == {
        "prompt": PROMPT, "support": str(folder), "images": "20", "num_samples": "4", "steps": "3", "seed": "5",
        "understood": loaded.understood(PROMPT).said, "ignored": "", "doubt": "", "forced": "false",
        "task": "rotation_75", "where": "unseen, degrees from 60 to 90", "between": "",
        "sampler": "heun", "model": files.sha256(published_folder / files.MANIFEST), "expected_accuracy": "",
    }  # fmt: skip
    assert "1 network, the likeliest of 4 by 20 images" in said() and "is not known" in said()


def test_images_without_labels_are_adapted_to_with_a_warning(adapted, folder, said):
    for path in list(folder.rglob("*.png")):
        path.rename(folder / path.name)
    for path in [p for p in folder.iterdir() if p.is_dir()]:
        path.rmdir()
    arrays, facts = adapted()
    assert facts["images"] == "20" and facts["prompt"] == "" and "warning: no image has a label" in said()


def another_size(folder):
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(folder / "three" / "x.png")


def another_class(folder):
    (folder / "three").rename(folder / "tree")


def one_image(folder):
    for path in sorted(folder.rglob("*.png"))[1:]:
        path.unlink()


@pytest.mark.parametrize("change, given, message", [
    (another_size, {}, "x.png: an image of .9, 8.; allowed: .8, 8."),
    (another_class, {}, "tree: no class of this generator; allowed: zero, one, two"),
    (one_image, {}, "got 1 labelled image; allowed: at least 2"),
    (None, {"support": None}, "--support: missing; allowed: a folder of images of the task, one folder for each class"),
    (None, {"support": "/nowhere"}, "no such folder; allowed: a folder of images"),
    (None, {"out": None}, "--out: missing"),
    (None, {"out": "/nowhere/x.npz"}, "no existing folder"),
    (None, {"prompt": "tourne les chiffres"}, "prompt: 'tourne les chiffres'"),
    (None, {"steps": -1}, "steps: got -1"),
])  # fmt: skip
def test_what_cannot_be_adapted_to_writes_nothing(adapted, folder, tmp_path, change, given, message):
    if change:
        change(folder)
    with pytest.raises(PdiffError, match=message) as error:
        adapted(**given)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"] and "\n" not in str(error.value)


def test_a_published_folder_gives_the_networks_of_its_run(published_folder, loaded, tmp_path, tiny_zoo):
    static = generator.load(published_folder)
    params = published.restore_params(static, published_folder)
    results = results_lib.read(published_folder / "results.json")
    assert "command" not in results and set(results) <= set(published.RESULTS)
    published.write(static, params, results, tmp_path / "again")
    again = api.load(tmp_path / "again")
    kernel, twin = (x.sample(prompt=PROMPT)["params"]["Dense_0"]["kernel"] for x in (loaded, again))
    np.testing.assert_array_equal(kernel, twin)
    with pytest.raises(PdiffError, match="again exists; allowed: a new folder"):
        published.write(static, params, results, tmp_path / "again")
    too_large = {**params, "dit": {"x": np.float32(1e6)}}
    with pytest.raises(PdiffError, match="not finite in float16"):
        published.write(static, too_large, results, tmp_path / "large")
    assert [p.name for p in tmp_path.iterdir()] == ["again"]


def test_a_damaged_or_foreign_folder_is_refused(published_folder, tmp_path):
    static = generator.load(published_folder)
    params = published.restore_params(static, published_folder)
    folder = tmp_path / "copy"
    published.write(static, params, {}, folder)
    data = bytearray((folder / published.PARAMETERS).read_bytes())
    data[-1] ^= 1
    (folder / published.PARAMETERS).write_bytes(data)
    with pytest.raises(PdiffError, match=r"ema\.safetensors: damaged, its sha256"):
        api.load(folder)
    safetensors.numpy.save_file({"other": np.zeros(3, np.float16)}, folder / published.PARAMETERS)
    files.write_manifest(folder, published.KIND)
    with pytest.raises(PdiffError, match="is absent; allowed in this pdiff|allowed in this pdiff: absent"):
        api.load(folder)
