"""What the page is told: accuracies on validation images, answers on pictures, drawings, refusals."""

import base64
import dataclasses
import io
import json
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from pdiff.ask import prompts
from pdiff.ask.expect import Expectation
from pdiff.ask.serve import pictures
from pdiff.ask.serve.fields import MOST_DRAWN, MOST_EXAMPLES, MOST_NETWORKS
from pdiff.ask.serve.session import KEPT, _warnings
from pdiff.errors import PdiffError
from pdiff.measures.accuracy import Scorer
from pdiff.system.logs import log

PROMPT = "digits rotated by 75 degrees"
VAGUE = "digits rotated by between 60 and 90 degrees"


@pytest.fixture(scope="module")
def examples(loaded):
    """(images, labels) as a request has them: one of each class, turned by 75 degrees."""
    images = loaded.family.data["train"]
    rows = [int(np.flatnonzero(images.y == c)[0]) for c in range(10)]
    x = np.asarray(loaded.family.render(loaded.family.vary((75.0,)), images.x[rows]))
    return np.clip(x, 0, 1).tolist(), list(loaded.family.classes)


def decoded(uri):
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_accuracy_is_that_of_these_networks_on_the_task_s_validation_images(session, loaded):
    task = loaded.family.split("unseen")[1]
    made = session.sample({"task": task.name, "num_samples": 3, "seed": 5})
    networks = loaded.sample(task_id=task.name, num_samples=3, seed=5)
    scorer = Scorer(loaded._static, "validation", loaded._mesh)  # the target generates all leaves: parts are wholes
    right = scorer(networks, np.full(3, task.id))
    assert made["accuracy"]["mean"] == pytest.approx(right.mean(), abs=1e-6)
    assert (made["accuracy"]["low"], made["accuracy"]["high"]) == pytest.approx((right.min(), right.max()), abs=1e-6)
    assert made["accuracy"]["images"] == len(loaded.family.data["validation"].y) and made["accuracy"]["networks"] == 3
    assert "unseen task" in made["expected"]["said"] and made["factors"] == list(task.factors)


def test_pictures_are_the_task_s_images_and_marks_the_network_s_answers(session, loaded):
    made = session.sample({"prompt": PROMPT, "num_samples": 1})
    network = jax.tree.map(lambda a: a[0], loaded.sample(prompt=PROMPT))
    own = loaded.family.vary((75.0,))
    names = loaded.family.classes
    for image in made["images"][:5]:
        x = decoded(image["src"]).reshape(1, -1).astype(np.float32) / 255
        assert names[int(loaded.apply(network, x).argmax())] == image["predicted"]
        assert image["right"] == (image["predicted"] == image["label"])
    validation = loaded.family.data["validation"]
    rendered = np.clip(np.asarray(loaded.family.render(own, validation.x)), 0, 1)
    first = decoded(made["images"][0]["src"]).ravel() / 255
    nearest = np.abs(rendered - first).max(1).argmin()
    assert np.abs(rendered[nearest] - first).max() < 1 / 255
    assert names[validation.y[nearest]] == made["images"][0]["label"]


def test_a_vague_prompt_gives_networks_of_different_tasks(session, loaded):
    made = session.sample({"prompt": VAGUE, "num_samples": 3, "seed": 2})
    assert made["understood"] == "any angle from 60 to 90 degrees (30 of 360)"
    assert made["prompt"] == VAGUE and not made["forced"] and made["factors"] is None
    networks = loaded.sample(prompt=VAGUE, num_samples=3, seed=2)
    suited = loaded.suited(networks, VAGUE)
    assert [n["index"] for n in made["networks"]] == [0, 1, 2]
    for said, one in zip(made["networks"], suited, strict=True):
        assert said["description"] == one.description == f"digits rotated by {one.factors[0]:g} degrees"
        assert said["factors"] == one.factors and said["accuracy"] == one.accuracy
        assert 60 <= one.factors[0] <= 90
    first, validation = suited[0], loaded.family.data["validation"]
    x = loaded.family.render(loaded.family.vary(first.factors), validation.x)
    answers = loaded.apply(jax.tree.map(lambda a: a[0], networks), x).argmax(-1)
    accuracy = made["accuracy"]
    assert accuracy["mean"] == pytest.approx(float((answers == validation.y).mean()), abs=1e-6)
    assert accuracy["networks"] == 1 and accuracy["low"] == accuracy["high"] and len(made["images"]) == 30
    said = session.draw({"id": made["id"], "pixels": [0.5] * 64})
    assert sum(count for _, count in said["votes"]) == 1  # of the first one, whose task that is
    facts = session.made(made["id"]).facts
    assert facts["model"] == loaded.model and facts["sampler"] == "heun" and json.loads(facts["best"]) == [
        {"for": one.description, "accuracy": round(one.accuracy, 4)} for one in suited
    ]  # fmt: skip
    assert facts["understood"] == made["understood"] and len(jax.tree.leaves(session.made(made["id"]).networks)[0]) == 3


def test_a_precise_prompt_has_one_task(session):
    made = session.sample({"prompt": PROMPT, "num_samples": 2})
    assert made["understood"] == "75 degrees counter-clockwise; unseen, degrees from 60 to 90"
    assert made["networks"] is None and made["warnings"] == made["ignored"] == [] and made["factors"] == [75.0]


def test_words_in_other_orders_are_shown_the_task_that_was_read(session, loaded):
    made = session.sample({"prompt": "kindly, digits just 75 degrees clockwise", "num_samples": 1})
    assert made["factors"] == [285.0] and made["ignored"] == ["kindly", "just"]
    facts = session.made(made["id"]).facts
    assert facts["understood"] == "285 degrees counter-clockwise (75 clockwise)" and facts["ignored"] == "kindly, just"
    x = loaded.family.render(loaded.family.vary((285.0,)), loaded.family.data["validation"].x)
    right = loaded.apply(session.made(made["id"]).networks, x)[0].argmax(-1) == loaded.family.data["validation"].y
    assert made["accuracy"]["mean"] == pytest.approx(float(right.mean()), abs=1e-6)


@pytest.mark.parametrize("prompt", [PROMPT, VAGUE])
def test_a_prompt_is_read_once(session, monkeypatch, prompt):
    read, real = [], prompts.read
    monkeypatch.setattr(prompts, "read", lambda *args: read.append(args) or real(*args))
    session.sample({"prompt": prompt, "num_samples": 2})
    assert len(read) == 1


def test_examples_are_precise_and_vague_and_work(session, loaded):
    examples = session.facts()["examples"]
    assert examples == loaded.examples(8)
    made = [session.sample({"prompt": example, "num_samples": 1}) for example in examples]
    assert any(m["factors"] for m in made) and any(m["networks"] for m in made)
    assert not any(m["forced"] or m["warnings"] for m in made)


def test_where_factors_do_not_say_all_of_a_task_the_nearest_one_is_shown(session, loaded, monkeypatch):
    monkeypatch.setattr(session, "_family", dataclasses.replace(loaded.family, vary=None))
    task = loaded.family.split("unseen")[1]
    np.testing.assert_array_equal(session._nearest((task.factors[0] + 0.01,)), loaded.family.variables[task.id])


def test_a_few_labelled_images_give_an_adapted_network(session, loaded, examples, monkeypatch):
    images, labels = examples
    expected = Expectation(0.9, 0.88, 0.92, 3, "made up")
    monkeypatch.setattr(loaded, "expect_adapted", lambda y, described: expected if len(y) == 10 else None)
    made = session.adapt({"images": images, "labels": labels, "num_samples": 20, "seed": 1})
    assert made["prompt"] is None and made["accuracy"] is None and made["networks"] is None and made["factors"] is None
    assert (
        made["expected"] == {"mean": expected.mean, "said": str(expected)} and made["warnings"] == [] and made["maps"]
    )
    networks = loaded.adapt(np.array(images, np.float32), np.arange(10), num_samples=20, seed=1)
    kept = session.made(made["id"]).networks
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), kept, networks)
    network = jax.tree.map(lambda a: a[0], kept)
    answers = np.asarray(loaded.apply(network, np.array(images, np.float32)).argmax(-1))
    assert [image["predicted"] for image in made["images"]] == [loaded.family.classes[c] for c in answers]
    assert [image["label"] for image in made["images"]] == labels
    said = session.draw({"id": made["id"], "pixels": images[3]})
    assert said["votes"] == [(loaded.family.classes[answers[3]], 1)]
    np.testing.assert_allclose(decoded(said["image"]).ravel() / 255, images[3], atol=0.01)  # as it is


def test_labels_may_be_numbers_and_missing_classes_are_warned_of(session, loaded, examples):
    images, labels = examples
    one, other = (session.adapt({"images": images[:8], "labels": some, "prompt": VAGUE, "num_samples": 4})
                  for some in (labels[:8], list(range(8))))  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *(session.made(made["id"]).networks for made in (one, other)))
    assert other["understood"].startswith("any angle from 60 to 90") and other["prompt"] == VAGUE
    (warning,) = other["warnings"]
    assert warning.startswith("no labelled image of eight, nine")
    assert session.made(other["id"]).facts["labels"].startswith("zero, one, two")
    assert session.sample({"prompt": PROMPT, "num_samples": 1})["warnings"] == []


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": [], "labels": []}, "images: got 0; allowed: 2 to 64"),
        ({"images": None, "labels": None}, "images: got a NoneType; allowed: a list"),
        ({"labels": ["one"]}, "labels: got 1 for 2 images"),
        ({"images": [[0.5] * 64], "labels": ["one"]}, "got 1 labelled image; allowed: at least 2"),
        ({"images": [[0.5] * 64, [0.5] * 63]}, "got 63 values for image 1; allowed: a list of 64 numbers from 0 to 1"),
        ({"images": [[0.5] * 64, [255.0] * 64]}, "image 1; allowed: a list of 64 numbers from 0 to 1"),
        ({"images": [[0.5] * 64, "a" * 64]}, "got a str for image 1"),
        ({"images": [[0.5] * 64] * (MOST_EXAMPLES + 1), "labels": [0] * (MOST_EXAMPLES + 1)}, "got 65; allowed: 2 to"),
        ({"labels": ["one", "eleven"]}, "labels: got 'eleven'; allowed: zero, one, .*or a whole number from 0 to 9"),
        ({"labels": ["one", 10]}, "labels: got '10'"),
        ({"labels": ["one", True]}, "labels: got 'True'"),
        ({"labels": ["one", [1] * 1000]}, "labels: got"),
        ({"num_samples": 0}, f"num_samples: got 0; allowed: 1 to {MOST_DRAWN}"),
        ({"prompt": "order a pizza"}, "prompt: 'order a pizza'"),
        ({"prompt": "?"}, "prompt: got '[?]', which has no word in it"),
        ({"task": "0"}, "'task': unknown field; allowed: images, labels"),
    ],
)
def test_bad_examples_are_refused(session, change, message):
    request = {"images": [[0.5] * 64, [0.2] * 64], "labels": ["one", "two"], "num_samples": 2} | change
    with pytest.raises(PdiffError, match=message):
        session.adapt(request)


def test_examples_are_what_is_missing_where_there_are_none(session):
    with pytest.raises(PdiffError, match="images: got 0; allowed: 2 to 64, each with its label"):
        session.adapt({})


def test_factors_become_a_description(session, loaded):
    made = session.sample({"factors": [75.0], "num_samples": 2})
    assert made["prompt"] == PROMPT and made["accuracy"] is not None
    facts = session.facts()
    assert facts["controls"] == [
        {"name": "degrees", "binary": False, "low": 0, "high": 360, "scale": 1, "turning": "counter-clockwise"}
    ]
    unseen = [[r["from"], r["to"]] for r in facts["regions"] if r["split"] == "unseen"]
    assert unseen == [list(a) for a in loaded.family.arcs["unseen"]]


def test_a_prompt_that_names_no_task_has_no_accuracy(session):
    made = session.sample({"prompt": "digits", "force": True})
    assert made["accuracy"] is None and made["images"] == [] and made["expected"] is None and made["forced"]
    (warning,) = made["warnings"]
    assert warning.startswith("prompt 'digits': does not say an angle")
    facts = session.made(made["id"]).facts
    assert facts["forced"] == "true" and facts["doubt"] in warning and facts["expected_accuracy"] == ""


def test_warnings_of_one_request_are_not_told_to_another(session):
    other = threading.Thread(target=log.warning, args=("warning: of another request",))
    with _warnings() as said:
        other.start()
        other.join()
        log.warning("warning: of this one")
    assert said == ["of this one"]


def test_a_drawing_is_seen_as_the_task_has_it(session, loaded):
    made = session.sample({"prompt": "digits rotated by 90 degrees", "num_samples": 3})
    drawing = np.zeros((8, 8))
    drawing[1:7, 3] = 1
    said = session.draw({"id": made["id"], "pixels": drawing.ravel().tolist()})
    assert sum(count for _, count in said["votes"]) == 3
    turned = decoded(said["image"]) / 255
    np.testing.assert_allclose(turned, np.rot90(drawing), atol=0.01)  # counter-clockwise


def test_only_the_last_requests_are_kept(session):
    ids = [session.sample({"prompt": PROMPT, "num_samples": 1})["id"] for _ in range(KEPT + 1)]
    assert session.made(ids[1]).facts["prompt"] == PROMPT
    with pytest.raises(PdiffError, match="sample again"):
        session.made(ids[0])


@pytest.mark.parametrize(
    "request_, message",
    [
        ({}, "give one of prompt, task, factors"),
        ({"prompt": PROMPT, "task": "0"}, "got prompt, task"),
        ({"prompt": 5}, "prompt: got a int; allowed: a str"),
        ({"prompt": PROMPT, "num_samples": True}, "num_samples: got a bool"),
        ({"prompt": PROMPT, "num_samples": MOST_NETWORKS + 1}, "allowed: 1 to 16"),
        ({"prompt": PROMPT, "seed": -1}, "seed: got -1"),
        ({"prompt": PROMPT, "sampler": "heun"}, "unknown field"),
        ({"prompt": "x" * 2000}, "2000 characters"),
        ({"prompt": "order a pizza"}, "prompt: 'order a pizza'"),
        ({"prompt": " \t"}, "which has no word in it"),
        ({"prompt": "?!"}, "which has no word in it"),
        ({"task": "rotation_999"}, "allowed: an id"),
        ({"factors": [1.0, 2.0]}, "allowed: 1 numbers: degrees"),
        ({"factors": [float("nan")]}, "factors: got"),
        ({"factors": [361.0]}, "got 361 for degrees; allowed: 0 to 360"),
    ],
)
def test_bad_requests_are_refused(session, request_, message):
    with pytest.raises(PdiffError, match=message):
        session.sample(request_)


def test_large_networks_are_kept_for_fewer_requests(session, monkeypatch):
    made = [session.sample({"prompt": PROMPT, "num_samples": 1, "seed": i})["id"] for i in range(2)]
    one = sum(leaf.nbytes for leaf in jax.tree.leaves(session.made(made[1]).networks))
    monkeypatch.setattr("pdiff.ask.serve.session.KEPT_BYTES", 2 * one)
    made.append(session.sample({"prompt": PROMPT, "num_samples": 1, "seed": 2})["id"])
    with pytest.raises(PdiffError, match="sample again"):
        session.made(made[0])
    assert session.made(made[1]) and session.made(made[2])


@pytest.mark.parametrize("pixels", [None, [0.0] * 63, [2.0] * 64, ["a"] * 64, [float("nan")] * 64, [True] * 64])
def test_bad_drawings_are_refused(session, pixels):
    made = session.sample({"prompt": PROMPT, "num_samples": 1})
    with pytest.raises(PdiffError, match="64 numbers from 0 to 1"):
        session.draw({"id": made["id"], "pixels": pixels})


def test_heat_maps_show_sign_and_size():
    weights = np.array([[-2.0, 0.0], [1.0, 2.0]])
    uri, largest = pictures.heat_map(weights)
    pixels = decoded(uri).astype(int)
    assert largest == 2 and pixels.shape == (2, 2, 3)
    assert pixels[1, 0].tolist() == [255, 255, 255]  # column 1 of row 0: zero is white
    assert pixels[0, 0, 2] > pixels[0, 0, 0] and pixels[1, 1, 0] > pixels[1, 1, 2]  # blue below, red above
    assert max(decoded(pictures.heat_map(np.ones((500, 300)))[0]).shape) <= pictures.MOST_SIDE
