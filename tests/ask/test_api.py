"""`pdiff.load` and what it returns, on a published folder: samples, adaptation, refusals, imports that cost nothing."""

import dataclasses
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import pdiff
from pdiff.ask.request import Request
from pdiff.errors import PdiffError
from pdiff.generator import published
from pdiff.generator.generator import MEMBERS
from pdiff.tasks.families.rotation import rotation_matrix
from tests.annotations import unchecked

PROMPT = "digits rotated by 75 degrees"
VAGUE = "digits rotated by between 60 and 90 degrees"


def kernel(networks):
    return networks["params"]["Dense_0"]["kernel"]


def test_samples_do_not_depend_on_how_many_are_drawn_and_differ_with_the_prompt(loaded):
    few, many = (kernel(loaded.sample(prompt=PROMPT, num_samples=n, sampler="ddim")) for n in (2, 5))
    np.testing.assert_allclose(many[:2], few, atol=1e-5)
    assert np.abs(few[0] - few[1]).max() > 1e-4
    other = kernel(loaded.sample(prompt="digits rotated by 200 degrees", num_samples=2, sampler="ddim"))
    assert np.abs(other - few).max() > 1e-4


def test_a_task_is_asked_for_as_its_description_is(loaded):
    task = loaded.family.split("seen")[3]
    by_name = kernel(loaded.sample(task_id=task.name))
    np.testing.assert_array_equal(by_name, kernel(loaded.sample(task_id=task.id)))
    np.testing.assert_array_equal(by_name, kernel(loaded.sample(prompt=task.descriptions[0])))


def test_at_its_ends_a_mixture_is_the_task_itself(loaded):
    first, second = (t.name for t in loaded.family.split("seen")[:2])
    for weight, name in ((0.0, first), (1.0, second)):
        mixed = kernel(loaded.sample(between=(first, second, weight)))
        np.testing.assert_allclose(mixed, kernel(loaded.sample(task_id=name)), atol=1e-5)
    assert kernel(loaded.sample(between=(first, second, 0.5), num_samples=3)).shape == (3, 64, 32)


def test_expectations_come_with_what_is_asked(loaded):
    assert "unseen" in str(loaded.expect(prompt="digits turned by 75 degrees"))
    seen = loaded.family.split("seen")
    assert loaded.expect(task_id=seen[2].name).mean == pytest.approx(0.902)
    assert loaded.expect(between=(seen[0].name, seen[1].name, 0.5)).mean == 0.85
    assert loaded.expect("digits", force=True) is None


def test_a_prompt_about_something_else_is_taken_by_force_alone(loaded, caplog):
    foreign = "classify the mood of songs"
    for refused in (foreign, "recognise digits after blur of 75 percent"):
        with pytest.raises(PdiffError, match="prompt: .*--force"):
            loaded.sample(prompt=refused)
    assert loaded.plan(Request(PROMPT, force=True)).doubt == ""
    plan = loaded.plan(Request(foreign, force=True))
    assert plan.doubt and not plan.vague and plan.facts["doubt"] == plan.doubt and plan.facts["forced"] == "true"
    assert np.isfinite(kernel(loaded.draw(plan))).all() and loaded.expected(plan) is None


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "give one of"),
        ({"prompt": PROMPT, "task_id": 0}, "got prompt, task_id; give one of"),
        ({"prompt": ""}, "got '', which has no word in it"),
        ({"prompt": " \n"}, "which has no word in it; allowed: a description of a task"),
        ({"prompt": "?"}, "got '[?]', which has no word in it"),
        ({"prompt": "… -"}, "which has no word in it"),
        ({"prompt": 75}, "prompt: got 75; allowed: a description in words"),
        ({"prompt": ["digits"]}, "prompt: got .'digits'.; allowed: a description in words"),
        ({"prompt": "classify the mood of songs"}, "prompt: 'classify the mood of songs'"),
        ({"between": (0, 1, 1.5)}, "weight 1.5; allowed: a number from 0 to 1"),
        ({"between": (0, 1, float("nan"))}, "weight nan"),
        ({"between": (0, 1)}, "two tasks and a number"),
        ({"between": (0, 1, "half")}, "two tasks and a number"),
        ({"between": "0,1,0.5"}, "two tasks and a number"),
        ({"between": (0.5, 1, 0.5)}, "between: got 0.5; allowed: the name of a task, or its id"),
        ({"between": (0, "rotation_999", 0.5)}, "between: got 'rotation_999'; allowed: an id from 0 to"),
        ({"task_id": 10**6}, "task_id: got 1000000; allowed: an id"),
        ({"task_id": -1}, "task_id: got -1; allowed: an id"),
        ({"task_id": True}, "task_id: got True; allowed: the name of a task, or its id"),
        ({"task_id": 1.0}, "task_id: got 1.0; allowed: the name of a task, or its id"),
        ({"prompt": PROMPT, "num_samples": 0}, "num_samples: got 0; allowed: a whole number, at least 1"),
        ({"prompt": PROMPT, "num_samples": "2"}, "num_samples: got '2'; allowed: a whole number"),
        ({"prompt": PROMPT, "num_samples": True}, "num_samples: got True"),
        ({"prompt": PROMPT, "seed": -1}, "seed: got -1; allowed: a whole number, from 0 to 4294967295"),
        ({"prompt": PROMPT, "seed": 1.5}, "seed: got 1.5"),
        ({"prompt": PROMPT, "seed": 2**32}, "seed: got 4294967296"),
        ({"prompt": PROMPT, "force": 1}, "force: got 1; allowed: True or False"),
        ({"prompt": PROMPT, "sampler": "huen"}, "allowed: heun"),
        ({"prompt": PROMPT, "sampler": 3}, "sampler: got 3; allowed: heun"),
        ({"prompt": "digits rotated by between 10.5 and 11.5 degrees"}, "names any angle .*, where there is no task"),
        ({"prompt": "digits rotated by between 9e9 and 75 degrees " * 40}, "1800 characters; allowed: at most 1000"),
    ],
)
def test_what_is_not_sampled_is_not_expected_either(loaded, given, message):
    for ask in (loaded.sample, loaded.expect):
        if ask == loaded.expect and not {"num_samples", "seed"}.isdisjoint(given):
            continue
        with unchecked(), pytest.raises(PdiffError, match=message) as error:
            ask(**given)
        assert "\n" not in str(error.value)


def test_an_id_is_no_angle_and_that_is_said_once(published_folder, said):
    loaded = pdiff.load(published_folder)
    task = loaded.family.tasks[3]
    assert loaded.task(task.name) == task and said() == ""
    assert loaded.task(3) == loaded.task("3") == task
    told = f"task: 3 counts the tasks from 0 and is no number of a description; it is {task.name} (id 3, {task.split})"
    assert said().count("warning: ") == 1 and f"{told}: '{task.descriptions[0]}'" in said()


def test_a_name_comes_before_an_id_and_near_names_are_given(loaded, monkeypatch):
    tasks = loaded.family.tasks
    renamed = dataclasses.replace(tasks[5], name="3")
    family = dataclasses.replace(loaded.family, tasks=(*tasks[:5], renamed, *tasks[6:]))
    monkeypatch.setattr(loaded._planner, "_family", family)
    assert loaded.task("3") == renamed
    with pytest.raises(PdiffError, match=f"or a name such as .*{tasks[2].name}"):
        loaded.task(tasks[2].name + "9")


# --- vague prompts -----------------------------------------------------------------------------------


@pytest.fixture
def drawn(loaded, monkeypatch):
    """(sampler, condition) of everything that is drawn."""
    found, batches = [], loaded._samplers.batches
    monkeypatch.setattr(loaded._samplers, "batches", lambda p, n, c, k: found.append((n, c)) or batches(p, n, c, k))
    return found


def test_a_vague_prompt_draws_under_members_inside_its_set(loaded, drawn):
    loaded.sample(prompt=VAGUE, num_samples=5, sampler="ddim")
    loaded.sample(prompt=PROMPT)
    (name, condition), (_, precise) = drawn
    named = condition.pop("members")
    assert name == "ddim" and named["keep"].all() and not any(c["keep"].any() for c in condition.values())
    members, zoo = named["inputs"], loaded._static.refined
    assert members.shape == (5, MEMBERS, zoo.means.shape[1]) and (members == members[0]).all()
    angles = zoo.factors[np.abs(zoo.means[None] - members[0][:, None]).max(-1).argmin(1), 0]
    assert (np.abs(zoo.means[None] - members[0][:, None]).max(-1).min(1) == 0).all()
    assert (angles >= 60).all() and (angles <= 90).all() and len(set(angles)) == 16  # all that there are in it
    assert not precise["members"]["keep"].any() and precise["text"]["keep"].all()


def test_networks_of_a_vague_prompt_differ_from_those_of_another(loaded):
    one, two = (kernel(loaded.sample(prompt=VAGUE, num_samples=3, sampler="ddim", seed=s)) for s in (0, 1))
    assert np.abs(one[0] - one[1]).max() > 1e-4 and np.abs(one - two).max() > 1e-4
    other = kernel(loaded.sample(prompt="digits rotated by between 200 and 230 degrees", num_samples=3, sampler="ddim"))
    assert np.abs(one - other).max() > 1e-4


def test_what_is_to_differ_is_not_drawn_in_one_call_unless_asked_for(loaded, drawn, monkeypatch):
    def sampler(*prompt, **given):
        return loaded.plan(Request(*prompt, **given)).sampler

    assert loaded.default_sampler == sampler(PROMPT) == sampler(task=loaded.family.tasks[0].name) == "posterior_mean"
    assert sampler(VAGUE) == "heun"  # where the run has chosen none
    assert sampler(VAGUE, sampler="posterior_mean") == "posterior_mean"
    monkeypatch.setitem(loaded.results["selection"], "many_steps", "ddim")
    assert sampler(VAGUE) == "ddim"
    loaded.sample(prompt=VAGUE)
    assert drawn[-1][0] == "ddim"


def test_a_vague_prompt_is_understood_and_a_precise_one_is_no_set(loaded):
    tasks = loaded.understood(f" {VAGUE.upper()}.").tasks
    assert tasks.said == "any angle from 60 to 90 degrees (30 of 360)"
    assert tasks.contains(np.array([[59.0], [60.0], [90.0], [91.0]])).tolist() == [False, True, True, False]
    precise = loaded.understood(PROMPT)
    assert precise.tasks is None and precise.factors == (75.0,) and "75 degrees" in precise.said
    with pytest.raises(PdiffError, match="allowed: a vague one, which names a set"):
        loaded.suited(loaded.sample(prompt=PROMPT), PROMPT)


def test_what_networks_suit_is_a_task_of_the_set_with_its_test_accuracy(loaded):
    networks = loaded.sample(prompt=VAGUE, num_samples=2, sampler="ddim")
    found = loaded.suited(networks, VAGUE)
    assert len(found) == 2
    for i, one in enumerate(found):
        assert 60 <= one.factors[0] <= 90 and one.description == f"digits rotated by {one.factors[0]:g} degrees"
        x = loaded.family.data["test"].x @ rotation_matrix(one.factors[0])
        network = jax.tree.map(lambda w, i=i: w[i], networks)
        right = (np.asarray(loaded.apply(network, x)).argmax(-1) == loaded.family.data["test"].y).mean()
        assert one.accuracy == pytest.approx(right, abs=0.05)  # of some of the images


def test_what_to_expect_of_a_vague_prompt_is_that_of_its_tasks_by_the_sampler_that_draws(loaded):
    found = loaded.expect(prompt=VAGUE, sampler="ddim")
    inside = [r for e in loaded.results["splits"].values() for r in e["per_task"] if 60 <= r["factors"][0] <= 90]
    assert found.mean == pytest.approx(np.mean([r["generated"]["ddim"] for r in inside]), abs=0.01)
    assert found.basis.endswith("tasks of any angle from 60 to 90 degrees (30 of 360)")
    assert loaded.expect(prompt=VAGUE) is None  # Heun's method, which the results say nothing of


# --- from a few images ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(loaded):
    """Two images of each class, turned by 75 degrees, and their labels."""
    data = loaded.family.data["train"]
    rows = np.concatenate([np.flatnonzero(data.y == c)[:2] for c in range(10)])
    return data.x[rows] @ rotation_matrix(75.0), data.y[rows]


def loss(loaded, network, x, y):
    logp = jax.nn.log_softmax(loaded.apply(jax.tree.map(lambda w: w[0], network), x), -1)
    return -float(logp[np.arange(len(y)), y].mean())


def test_the_likeliest_of_what_is_drawn_is_fine_tuned_on_the_images(loaded, images, said):
    x, y = images
    chosen = loaded.adapt(x, y, num_samples=8, steps=0)
    tuned = loaded.adapt(x, y, num_samples=8)  # as many steps as the config says
    more = loaded.adapt(x, y, num_samples=8, steps=40)
    assert jax.tree.structure(tuned) == jax.tree.structure(loaded.sample(PROMPT)) and kernel(tuned).shape[0] == 1
    assert loss(loaded, more, x, y) < loss(loaded, tuned, x, y) < loss(loaded, chosen, x, y)
    few = loaded.adapt(x, y, num_samples=1, steps=0)
    assert loss(loaded, chosen, x, y) <= loss(loaded, few, x, y)
    np.testing.assert_array_equal(kernel(chosen), kernel(loaded.adapt(x, y, num_samples=8, steps=0)))
    assert np.abs(kernel(chosen) - kernel(loaded.adapt(x, y, num_samples=8, steps=0, seed=1))).max() > 1e-5
    assert said() == ""


def test_a_description_says_what_to_draw_from(loaded, images, drawn):
    for prompt in (None, PROMPT, VAGUE):
        loaded.adapt(*images, prompt=prompt, num_samples=4, steps=0)
    assert [n for n, _ in drawn] == ["heun"] * 3  # networks to choose among have to differ
    given = [{n for n, c in condition.items() if c["keep"].all()} for _, condition in drawn]
    assert given == [set(), {"text"}, {"members"}]


@pytest.mark.parametrize("given, message", [
    ({"labels": None}, "warning: no image has a label: the network that is surest"),
    ({"labels": np.full(20, -1)}, "warning: no image has a label: the network that is surest"),
    ({"keep": slice(2, None)}, "warning: no labelled image of zero: what is chosen was not asked about it"),
    ({"steps": 61, "keep": [0, 5]}, "steps: 61 on 2 labelled images fits these by heart; up to 60 make sense"),
])  # fmt: skip
def test_examples_that_say_little_are_taken_with_a_warning(loaded, images, said, given, message):
    x, y = images
    rows = given.get("keep", slice(None))
    found = loaded.adapt(x[rows], given.get("labels", y[rows]), num_samples=4, steps=given.get("steps", 1))
    assert np.isfinite(kernel(found)).all() and message in said()
    others = 1 if "keep" in given and "steps" in given else 0  # two images are not one of each class
    assert said().count("warning: ") == 1 + others


def test_without_a_label_nothing_is_fine_tuned(loaded, images):
    few, many = (kernel(loaded.adapt(images[0], num_samples=4, steps=n)) for n in (0, 20))
    np.testing.assert_array_equal(few, many)


@pytest.mark.parametrize("change, given, message", [
    (lambda x, y: (x[:1], y[:1]), {}, "got 1 labelled image; allowed: at least 2, and one of each class"),
    (lambda x, y: (x, np.where(np.arange(20) == 3, y, -1)), {}, "got 1 labelled image"),
    (lambda x, y: (x[:, :5], y), {}, "images: got shape .20, 5.; allowed: .images, 64. or .images, 8, 8."),
    (lambda x, y: (x[0], y[:1]), {}, "images: got a single image of shape .64,."),
    (lambda x, y: (x[:0], y[:0]), {}, "images: got shape .0, 64."),
    (lambda x, y: (16 * x, y), {}, "from 0 to 16; allowed: from 0 to 1; pixels of scikit-learn are divided by 16"),
    (lambda x, y: (x, [[1], [1, 2]]), {}, "labels: got a list that is no array"),
    (lambda x, y: (x, y + 1), {}, "labels .* for 20 images; allowed: a whole number from 0 to 9"),
    (lambda x, y: (x, y - 2), {}, "allowed: a whole number from 0 to 9"),
    (lambda x, y: (x, y[:3]), {}, "for 20 images; allowed: a whole number from 0 to 9 for each"),
    (lambda x, y: (x, y / 2), {}, "allowed: a whole number from 0 to 9"),
    (lambda x, y: (x, y), {"steps": -1}, "steps: got -1; allowed: a whole number, at least 0"),
    (lambda x, y: (x, y), {"steps": 1.5}, "steps: got 1.5"),
    (lambda x, y: (x, y), {"num_samples": 0}, "num_samples: got 0; allowed: a whole number, at least 1"),
    (lambda x, y: (x, y), {"prompt": 75}, "prompt: got 75"),
    (lambda x, y: (x, y), {"prompt": "classify the mood of songs"}, "prompt: 'classify the mood of songs'"),
])  # fmt: skip
def test_examples_that_do_not_fit_are_refused_in_one_line(loaded, images, said, change, given, message):
    with unchecked(), pytest.raises(PdiffError, match=message) as error:
        loaded.adapt(*change(*images), **({"num_samples": 4} | given))
    assert "warning" not in said() and "\n" not in str(error.value)


def test_what_to_expect_follows_the_class_with_the_fewest_labels(loaded, images, monkeypatch):
    one = {"mean": 0.8, "sem": 0.01, "n": 9, "min": 0.0, "max": 1.0}
    rows = [{"shots": s, "accuracy": {n: one | {"mean": 0.8 + s / 100} for n in ("prior", "prior_described")}}
            for s in (1, 2, 4)]  # fmt: skip
    recipes = {str(s): {"prior": {"validation": 0.8}} for s in (1, 2, 4)}
    monkeypatch.setitem(loaded.results, "adaptation", {"splits": {"unseen": rows}, "recipes": recipes})
    labels = images[1]
    assert loaded.expect_adapted(labels, False).mean == pytest.approx(0.82)
    assert loaded.expect_adapted(labels[1:], True).mean == pytest.approx(0.81)  # as many as there are of a 0
    assert loaded.expect_adapted(labels[2:], False) is None and loaded.expect_adapted(None, False) is None
    assert loaded.expect_adapted(np.array([-1, 3]), False) is None


# --- loading ------------------------------------------------------------------------------------------


def test_folders_without_a_generator_are_refused(tmp_path, monkeypatch):
    with pytest.raises(PdiffError, match="no such folder; allowed: the workdir of a run"):
        pdiff.load(tmp_path / "nowhere")
    with pytest.raises(PdiffError, match="no generator here"):
        pdiff.load(tmp_path)
    monkeypatch.setattr(published, "EMBEDDED", tmp_path / "none")
    with pytest.raises(PdiffError, match="comes without a generator"):
        pdiff.load()


def test_importing_pdiff_takes_no_time_and_no_jax():
    code = "import sys; before = set(sys.modules); import pdiff; print(*set(sys.modules) - before)"
    began = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {m.split(".")[0] for m in out} & {"jax", "flax", "numpy", "tqdm", "tensorflow_datasets"}
    assert time.perf_counter() - began < 3  # Python's own start included; measured: 0.003 s for the import


def test_sampling_imports_nothing_that_it_does_not_need():
    code = "import sys; from pdiff import main; from pdiff.ask import commands; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"tensorflow_datasets", "grain", "torch", "matplotlib", "sklearn", "orbax", "scipy", "tensorboardX"}
    assert not {m.split(".")[0] for m in out} & heavy


def test_accuracy_is_of_each_network(loaded):
    networks, name = loaded.sample(PROMPT, num_samples=3), loaded.family.tasks[0].name
    assert loaded.accuracy(networks, name).shape == (3,)
    x, y = loaded.images(name)
    right = (np.asarray(loaded.apply(networks, x)).argmax(-1) == y).mean(1)
    np.testing.assert_allclose(loaded.accuracy(networks, name), right, atol=1e-6)


def test_one_network_or_many_answer_flat_images_or_whole_ones(loaded):
    networks, x = loaded.sample(PROMPT, num_samples=3), loaded.images(loaded.family.tasks[0].name)[0][:7]
    one, logits = jax.tree.map(lambda w: w[1], networks), loaded.apply(networks, x)
    assert logits.shape == (3, 7, 10)
    for again in (jax.vmap(loaded.apply, (0, None))(networks, x), loaded.apply(networks, x.reshape(7, 8, 8)),
                  jax.jit(loaded.apply)(networks, x)):  # fmt: skip
        np.testing.assert_allclose(again, logits, atol=1e-5)
    np.testing.assert_allclose(loaded.apply(one, x), logits[1], atol=1e-5)
    np.testing.assert_allclose(loaded.apply(one, x > 0.5), loaded.apply(one, (x > 0.5).astype(np.float32)))


def test_what_cannot_be_answered_is_refused(loaded):
    networks, x = loaded.sample(PROMPT, num_samples=2), np.zeros((3, 64), np.float32)
    one = jax.tree.map(lambda w: w[0], networks)
    with unchecked():
        for ask in (loaded.accuracy, loaded.suited):
            for wrong in (None, {}, one):
                with pytest.raises(PdiffError, match="networks: got"):
                    ask(wrong, VAGUE if ask == loaded.suited else loaded.family.tasks[0].name)
        for wrong, images in ((None, x), (one, x[0]), (one, x + 2)):
            with pytest.raises(PdiffError, match="networks: got None|x: got a single image|x: got pixels"):
                loaded.apply(wrong, images)


def test_images_are_those_of_the_task(loaded):
    task = loaded.family.split("unseen")[0]
    x, y = loaded.images(task.name, "train")
    data = loaded.family.data["train"]
    np.testing.assert_allclose(x, data.x @ rotation_matrix(task.factors[0]), atol=1e-5)
    np.testing.assert_array_equal(y, data.y)
    with pytest.raises(PdiffError, match="part: got 'all'; allowed: train, validation, test"):
        loaded.images(task.name, "all")


def test_examples_work(loaded):
    plans = [loaded.plan(Request(prompt)) for prompt in loaded.examples(8)]
    assert len(plans) == 8 and 0 < sum(plan.vague for plan in plans) < 8
    assert not any(plan.doubt for plan in plans)


def test_a_plan_says_what_was_read_and_what_changed_nothing(loaded, monkeypatch):
    prompt = "kindly, digits just 75 degrees clockwise"
    facts = loaded.plan(Request(prompt, seed=3, force=True)).facts
    assert "285" in facts["understood"] and facts.pop("understood") == loaded.understood(prompt).said
    assert facts == {
        "prompt": prompt, "ignored": "kindly, just", "doubt": "", "forced": "false", "task": "", "between": "",
        "where": "seen", "sampler": "posterior_mean", "seed": "3",
    }  # fmt: skip


def test_a_description_of_a_task_of_the_family_names_it(loaded):
    task = loaded.family.split("unseen")[1]
    for prompt in (task.descriptions[0], task.held_out_descriptions[0]):
        plan = loaded.plan(Request(prompt))
        assert plan.tasks == (task,) and plan.facts["task"] == task.name and plan.named_one
    vague = loaded.plan(Request(VAGUE))
    assert vague.tasks == () and vague.vague and not vague.named_one


# --- the README ---------------------------------------------------------------------------------------


def test_the_readme_s_python_block_runs(capsys):
    """With the generator of the package: 15 s."""
    (block,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.S)
    names = {}
    exec(block, names)
    assert "digits rotated by" in capsys.readouterr().out
    assert names["network"]["params"]["Dense_0"]["kernel"].shape == (1, 64, 32)
