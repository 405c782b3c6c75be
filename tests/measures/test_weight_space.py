"""Distances from inner products, against the plain formulas on whole matrices."""

import numpy as np
import pytest

from pdiff.measures.weight_space import Reference, gram_of_updates, gram_of_weights


def adapters(count, seed):
    random = np.random.default_rng(seed)
    shapes = {"lora/m/A": (2, 5), "lora/m/B": (4, 2), "lora/n/A": (2, 3), "lora/n/B": (6, 2)}
    return {p: random.standard_normal((count, *s)).astype(np.float32) for p, s in shapes.items()}


def products(params):
    """All updates of each network as one vector."""
    made = [params[f"lora/{m}/B"].astype(float) @ params[f"lora/{m}/A"].astype(float) for m in "mn"]
    return np.concatenate([p.reshape(len(p), -1) for p in made], 1)


def vectors(params):
    return np.concatenate([v.reshape(len(v), -1).astype(float) for v in params.values()], 1)


SPACES = [(gram_of_weights, vectors), (gram_of_updates, products)]


@pytest.mark.parametrize(("gram", "whole"), SPACES)
def test_inner_products_are_those_of_whole_matrices(gram, whole):
    a, b = adapters(3, 0), adapters(4, 1)
    np.testing.assert_allclose(gram(a, b), whole(a) @ whole(b).T, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_updates_of_another_rank_are_compared_as_matrices(rank):
    random, b = np.random.default_rng(2), adapters(4, 1)
    shapes = {"lora/m/A": (rank, 5), "lora/m/B": (4, rank), "lora/n/A": (rank, 3), "lora/n/B": (6, rank)}
    a = {p: random.standard_normal((2, *s)).astype(np.float32) for p, s in shapes.items()}
    np.testing.assert_allclose(gram_of_updates(a, b), products(a) @ products(b).T, atol=1e-9)
    np.testing.assert_allclose(gram_of_updates(b, a), products(b) @ products(a).T, atol=1e-9)


def test_scales_weigh_modules_and_heads_count_as_they_are():
    a, b = adapters(2, 0), adapters(3, 1)
    head = np.arange(15, dtype=np.float32).reshape(5, 3)
    a, b = a | {"whole/head": head[:2]}, b | {"whole/head": head[2:]}
    scaled = [products(p) * np.repeat([1.0, 0.5], [20, 18]) for p in (a, b)]
    expected = scaled[0] @ scaled[1].T + head[:2].astype(float) @ head[2:].T
    np.testing.assert_allclose(gram_of_updates(a, b, {"lora/n": 0.5}), expected, atol=1e-9)


def test_networks_known_by_their_inner_products_are_measured_alike():
    seen, made = adapters(4, 0), adapters(2, 1)
    reference = Reference.of(gram_of_updates, seen, np.arange(4), seen, np.arange(4))
    several = reference.measures_of(reference.inner(made).repeated(2), np.array([0, 3, 0, 3]))
    for i in range(2):
        one = reference.measures({p: v[i : i + 1].repeat(2, 0) for p, v in made.items()}, np.array([0, 3]))
        for name, values in one.items():
            np.testing.assert_allclose(several[name][2 * i : 2 * i + 2], values)


@pytest.mark.parametrize(("gram", "whole"), SPACES)
def test_measures_are_the_plain_ones(gram, whole):
    seen, seen_task = adapters(6, 0), np.array([0, 0, 1, 1, 2, 2])
    own, own_task, made, task = adapters(4, 1), np.array([7, 7, 8, 8]), adapters(3, 2), np.array([8, 7, 7])
    reference = Reference.of(gram, own, own_task, seen, seen_task)
    means = whole(seen).reshape(3, 2, -1).mean(1)
    unit = np.sqrt(((means - means.mean(0)) ** 2).sum(1).mean())
    assert reference.unit == pytest.approx(unit)
    found = reference.measures(made, task)
    center = whole(seen).mean(0)
    for i, t in enumerate(task):
        wanted, got = whole(own)[own_task == t].mean(0), whole(made)[i]
        gap = np.linalg.norm(got - wanted)
        assert found["distance"][i] == pytest.approx(gap / unit)
        assert found["relative_error"][i] == pytest.approx(gap / np.linalg.norm(wanted))
        u, v = got - center, wanted - center
        assert found["cosine"][i] == pytest.approx(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
    values, whose = reference.own_measures()
    expected = [np.linalg.norm(whole(own)[i] - whole(own)[j]) / unit for i, j in ((0, 1), (1, 0), (2, 3), (3, 2))]
    np.testing.assert_allclose(values["distance"], expected)
    np.testing.assert_array_equal(whose, own_task)
    apart = np.linalg.norm(whole(made)[:, None] - whole(seen)[None], axis=-1)
    np.testing.assert_allclose(reference.nearest(made), apart.min(1) / unit)


def test_copies_are_at_zero_and_the_mean_goes_no_way():
    seen, task = adapters(4, 0), np.arange(4)
    reference = Reference.of(gram_of_weights, seen, task, seen, task)
    copies = reference.measures(seen, task)
    np.testing.assert_allclose(copies["distance"], 0, atol=1e-7)
    np.testing.assert_allclose(copies["cosine"], 1)
    mean = {p: v.mean(0, keepdims=True, dtype=float).repeat(4, 0) for p, v in seen.items()}
    measured = reference.measures(mean, task)
    assert np.sqrt((measured["distance"] ** 2).mean()) == pytest.approx(1)
    np.testing.assert_array_equal(measured["cosine"], 0)
    assert reference.own_measures() is None
    assert reference.nearest(seen, np.arange(4)).min() > 0.1


def test_how_updates_are_factored_does_not_matter():
    made = adapters(3, 0)
    mixed = np.array([[2.0, 1.0], [0.0, 1.0]], np.float32)
    other = {p: v @ mixed if p.endswith("B") else np.linalg.inv(mixed) @ v for p, v in made.items()}
    reference = Reference.of(gram_of_updates, made, np.arange(3), made, np.arange(3))
    np.testing.assert_allclose(reference.measures(other, np.arange(3))["distance"], 0, atol=1e-3)


def test_a_network_of_norm_zero_has_a_relative_error_in_units_of_the_zoo():
    seen = {"w": np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])}
    reference = Reference.of(gram_of_weights, seen, np.arange(3), seen, np.arange(3))
    found = reference.measures({"w": np.array([[0.3, 0.4]])}, np.array([0]))
    assert found["relative_error"][0] == pytest.approx(0.5 / reference.unit) == found["distance"][0]
