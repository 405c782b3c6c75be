"""Merges as controls, against the plain formulas on matrices that are multiplied out."""

import dataclasses

import numpy as np
import pytest

from pdiff.config.fields import defaults
from pdiff.controls import merged
from pdiff.measures.weight_space import MEASURES, Reference, gram_of_updates, gram_of_weights
from pdiff.tasks import get_family
from pdiff.tasks.base import Task

SHAPES = {"lora/m/A": (2, 7), "lora/m/B": (5, 2), "lora/n/A": (2, 3), "lora/n/B": (6, 2)}
HEAD = {"whole/head": (4,)}
SPLITS = ("seen", "unseen", "seen", "validation", "seen", "unseen", "seen")  # by task


def family(factors=None, texts=None, splits=SPLITS):
    names = () if factors is None else ("x",) if np.ndim(factors[0]) == 0 else ("x", "y")
    factors = [()] * len(splits) if factors is None else [tuple(np.atleast_1d(f).tolist()) for f in factors]
    texts = texts or [f"task {i}" for i in range(len(splits))]
    tasks = tuple(Task(f"t{i}", i, s, factors[i], (texts[i],), ()) for i, s in enumerate(splits))
    return dataclasses.replace(
        get_family(defaults().tasks), tasks=tasks, factor_names=names, factor_periods=(0.0,) * len(names), data={}
    )


def adapters(count, seed, shapes):
    random = np.random.default_rng(seed)
    return {p: random.standard_normal((count, *s)).astype(np.float32) for p, s in shapes.items()}


def vectors(params, scale=1.0):
    """All that networks do, as one vector each; the updates of the second module by `scale`."""
    made = [params[f"lora/{m}/B"].astype(float) @ params[f"lora/{m}/A"].astype(float) for m in "mn"]
    parts = [made[0], scale * made[1], *(v.astype(float) for p, v in params.items() if p.startswith("whole/"))]
    return np.concatenate([v.reshape(len(v), -1) for v in parts], 1)


def merges(of, gram=gram_of_updates, shapes=SHAPES, seeds=1, adapter=True, base=None, scales=None):
    params, task = {}, {}
    for k, split in enumerate(("seen", "validation", "unseen")):
        ids = [t.id for t in of.split(split)]
        task[split] = np.repeat(ids, seeds)
        params[split] = adapters(len(task[split]), k, shapes)
    references = {s: Reference.of(gram, params[s], task[s], params["seen"], task["seen"]) for s in params}
    members = merged.members_of(of, params["seen"], task["seen"], base, adapter)
    return merged.Merges(of, members, references, of.split("validation"), scales or {}, 0), params


def distances(vector, own, unit):
    return np.linalg.norm(vector - own, axis=-1) / unit


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES | HEAD])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_mean_line_and_their_cuts_are_measured_as_matrices_are(shapes, scale):
    of = family(np.arange(7.0))
    gram = lambda a, b: gram_of_updates(a, b, {"lora/n": scale})  # noqa: E731
    found, params = merges(of, gram, shapes, scales={"lora/n": scale})
    unseen = of.split("unseen")
    measured = found.measures(unseen)
    assert all(set(m) == set(MEASURES) and m["distance"].shape == (2, 1) for m in measured.values())
    seen, own, unit = vectors(params["seen"], scale), vectors(params["unseen"], scale), found.references["seen"].unit
    np.testing.assert_allclose(measured["merged_mean"]["distance"][:, 0], distances(seen.mean(0), own, unit))
    # Task 1 lies half way between tasks 0 and 2, the first and second seen ones; task 5 between 4 and 6.
    between = np.stack([(seen[0] + seen[1]) / 2, (seen[2] + seen[3]) / 2])
    np.testing.assert_allclose(measured["merged_lerp"]["distance"][:, 0], distances(between, own, unit))
    u, v = between - seen.mean(0), own - seen.mean(0)
    cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    np.testing.assert_allclose(measured["merged_lerp"]["cosine"][:, 0], cosine)
    cut = []
    for module in "mn":
        updates = params["seen"][f"lora/{module}/B"].astype(float) @ params["seen"][f"lora/{module}/A"].astype(float)
        left, s, right = np.linalg.svd(updates.mean(0), full_matrices=False)
        cut.append((left[:, :2] * s[:2] @ right[:2]).ravel() * (scale if module == "n" else 1))
    cut += [v.mean(0) for p, v in params["seen"].items() if p.startswith("whole/")]
    np.testing.assert_allclose(
        measured["merged_svd"]["distance"][:, 0], distances(np.concatenate(cut), own, unit), rtol=1e-6
    )


def test_each_merge_of_adapters_stands_exactly_and_at_rank():
    found, _ = merges(family(np.arange(7.0)))
    measured = found.measures(found.family.split("unseen"))
    assert set(measured) == {
        "merged_mean", "merged_svd", "merged_ties", "merged_ties_svd", "merged_dare", "merged_dare_svd",
        "merged_lerp", "merged_lerp_svd", "merged_slerp", "merged_slerp_svd",
    }  # fmt: skip
    assert set(found.densities) == {"ties", "dare"} and set(found.densities.values()) <= set(merged.DENSITIES)


def test_densities_are_what_is_best_on_validation_tasks():
    """Where all validation networks are the seen ones' plain mean, DARE is to drop little."""
    found, params = merges(family(np.arange(7.0)))
    shared = {p: v[:1] if p.endswith("A") else v.mean(0, keepdims=True) for p, v in params["seen"].items()}
    own_task = found.references["validation"].own_task[:1]
    same = {p: v[:1].repeat(4, 0) if p.endswith("A") else v for p, v in params["seen"].items()}
    validation = dataclasses.replace(found.references["validation"], own=shared, own_task=own_task, seen=same)
    references = {s: dataclasses.replace(r, seen=same) for s, r in found.references.items()}
    references["seen"] = dataclasses.replace(references["seen"], own=same)
    found = dataclasses.replace(
        found,
        references=references | {"validation": validation},
        members=dataclasses.replace(found.members, params=same),
    )
    assert found.densities["dare"] == max(merged.DENSITIES)


def test_large_networks_are_merged_without_ties_and_dare(monkeypatch, said):
    monkeypatch.setattr(merged, "MOST_NUMBERS", 4 * (5 * 7 + 6 * 3) * 2 * (len(merged.DENSITIES) + 1) - 1)
    found, _ = merges(family(np.arange(7.0)))
    assert not any("ties" in n or "dare" in n for n in found.measures(found.family.split("unseen")))
    assert "--mode=merge" in said()


@pytest.mark.parametrize("has_base", [False, True])
def test_plain_networks_have_no_ranks_and_need_a_base_for_ties_and_dare(has_base):
    shapes = {"w": (3, 2), "b": (4,)}
    base = {p: np.ones((1, *s), np.float32) for p, s in shapes.items()} if has_base else None
    found, params = merges(family(np.arange(7.0)), gram_of_weights, shapes, adapter=False, base=base)
    measured = found.measures(found.family.split("unseen"))
    blind = {"merged_ties", "merged_dare"} if has_base else set()
    assert set(measured) == blind | {"merged_lerp", "merged_slerp"}
    flat = {s: np.concatenate([p["w"].reshape(-1, 6), p["b"]], 1).astype(float) for s, p in params.items()}
    line = (flat["seen"][0] + flat["seen"][1]) / 2
    expected = distances(line, flat["unseen"][0], found.references["seen"].unit)
    assert measured["merged_lerp"]["distance"][0, 0] == pytest.approx(expected, rel=1e-6)


def test_several_networks_of_a_task_count_as_their_mean():
    found, params = merges(family(np.arange(7.0)), seeds=2)
    seen, own = vectors(params["seen"]).reshape(4, 2, -1).mean(1), vectors(params["unseen"]).reshape(2, 2, -1).mean(1)
    measured = found.measures(found.family.split("unseen"))["merged_lerp"]["distance"][:, 0]
    line = np.stack([(seen[0] + seen[1]) / 2, (seen[2] + seen[3]) / 2])
    np.testing.assert_allclose(measured, distances(line, own, found.references["seen"].unit))


def place(of, i):
    a, b, t = merged.between(of, of.tasks[i])
    return a.id, b.id, pytest.approx(t)


def test_between_which_tasks_a_held_out_one_lies():
    """By factors 0, 1, 3, 3.2, 9: task 1 is 1/3 of the way from 0 to 2; task 5, beyond all, is at the last."""
    of = family([0.0, 1.0, 3.0, 2.9, 3.2, 20.0, 9.0])
    assert place(of, 1) == (0, 2, 1 / 3)
    assert place(of, 5) == (6, 4, 0)
    assert place(of, 3) == (2, 0, 0.1 / 3)  # not 4, which is nearer, but on the other side


def test_the_place_between_is_a_projection():
    """(1, 1) from (0, 0) towards (4, 0): a quarter of the way, though it lies beside the line."""
    factors = [(0.0, 0.0), (1.0, 1.0), (4.0, 0.0), (8.0, 8.0), (0.0, -9.0), (8.0, 7.0), (-9.0, 0.0)]
    assert place(family(factors), 1) == (0, 2, 0.25)


def test_a_line_that_passes_by_is_longer():
    """On a grid, from (0, 0) past (1, 0): straight on to (2, 0), and not to (1, 1), which is as near."""
    factors = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (9.0, 9.0), (2.0, 0.0), (9.0, 8.0), (4.0, 0.0)]
    assert place(family(factors), 1) == (0, 4, 0.5)


def test_without_factors_numbers_of_descriptions_say_where():
    texts = [f"strength {s}" for s in ("0.0", "0.3", "0.4", "0.5", "0.6", "-2", "2.0")]
    assert place(family(texts=texts), 1) == (2, 0, 0.25)
    assert place(family(texts=texts), 5) == (0, 2, 0)
    bare = [t.removeprefix("strength ") for t in texts]
    assert place(family(texts=bare), 1) == (2, 0, 0.25)


def test_numbers_count_among_tasks_with_the_same_words():
    texts = ["cat 1", "cat 2", "cat 4", "x 9", "dog 2", "dog 1", "dog 3"]
    assert place(family(texts=texts), 1) == (0, 2, 1 / 3)
    assert place(family(texts=texts), 5) == (4, 6, 0)


@pytest.mark.parametrize("texts", [
    ["a red fox", "a red cat", "a red cart", "bears", "trees", "owls", "moons"],
    ["a red fox 5", "a red cat 1", "a red cart 1", "bears 1", "trees 2 3", "owls", "moons 7"],
])  # fmt: skip
def test_words_alone_say_nothing_of_the_place(texts):
    a, b, t = merged.between(family(texts=texts), family(texts=texts).tasks[1])
    assert {a.id, b.id} == {2, 0} and t == 0.5
