"""What the page is told: accuracies on validation images, answers on pictures, drawings, refusals."""

import base64
import io

import jax
import numpy as np
import pytest
from PIL import Image

from pdiff.errors import PdiffError
from pdiff.evaluators.accuracy import Scorer
from pdiff.serve import pictures
from pdiff.serve.session import KEPT, MOST_NETWORKS

PROMPT = "digits rotated by 75 degrees"


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
    assert "unseen task" in made["expected"] and made["factors"] == list(task.factors)


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


def test_factors_become_a_description(session, loaded):
    made = session.sample({"factors": [75.0], "num_samples": 2})
    assert made["prompt"] == PROMPT and made["accuracy"] is not None
    facts = session.facts()
    assert facts["controls"] == [{"name": "degrees", "binary": False, "low": 0, "high": 360, "scale": 1}]
    unseen = [[r["from"], r["to"]] for r in facts["regions"] if r["split"] == "unseen"]
    assert unseen == [list(a) for a in loaded.family.arcs["unseen"]]


def test_a_prompt_that_names_no_task_has_no_accuracy(session):
    made = session.sample({"prompt": "digits", "force": True})
    assert made["accuracy"] is None and made["images"] == [] and made["expected"] is None and not made["known"]


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
        ({"prompt": "order a pizza"}, "looks like none"),
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
    monkeypatch.setattr("pdiff.serve.session.KEPT_BYTES", 2 * one)
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
