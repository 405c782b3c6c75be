"""Merges of whole networks against the same on matrices that are multiplied out."""

import numpy as np
import pytest

from pdiff.merging import methods, networks
from pdiff.merging.networks import Members, Method
from pdiff.merging.updates import Factors

SHAPES = {"lora/m/A": (2, 7), "lora/m/B": (5, 2), "lora/n/A": (2, 3), "lora/n/B": (6, 2)}


def adapters(count=4, seed=0, **more):
    random = np.random.default_rng(seed)
    return {p: random.standard_normal((count, *s)).astype(np.float32) for p, s in (SHAPES | more).items()}


def members(params, base=None, adapter=True, groups=None):
    count = len(next(iter(params.values())))
    return Members(params, groups or [np.array([i]) for i in range(count)], base, adapter)


def multiplied(params, module):
    return params[f"{module}/B"].astype(float) @ params[f"{module}/A"].astype(float)


def whole(piece):
    return piece.b @ piece.a if isinstance(piece, Factors) else piece


def expected(method, deltas):
    """The same, from matrices."""
    if method.name in ("mean", "svd"):
        return deltas.mean(0)
    if method.name == "lerp":
        return (1 - method.t) * deltas[0] + method.t * deltas[1]
    if method.name == "slerp":
        a, b = deltas
        angle = np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
        return (np.sin((1 - method.t) * angle) * a + np.sin(method.t * angle) * b) / np.sin(angle)
    raise AssertionError(method)


@pytest.mark.parametrize("name", ["mean", "svd", "lerp", "slerp"])
@pytest.mark.parametrize("seed", [0, 1])
def test_sums_are_those_of_updates_and_not_of_factors(name, seed):
    params = adapters(2 if name in methods.BETWEEN else 4, seed)
    method = Method(name, t=0.3)
    for module, piece in networks.merged(method, members(params)):
        assert isinstance(piece, Factors)  # nothing is multiplied out
        np.testing.assert_allclose(whole(piece), expected(method, multiplied(params, module)), atol=1e-12)
    of_factors = params["lora/m/B"].mean(0) @ params["lora/m/A"].mean(0)
    assert np.abs(of_factors - multiplied(params, "lora/m").mean(0)).max() > 0.1


@pytest.mark.parametrize("name", methods.ELEMENTWISE)
def test_methods_by_numbers_work_on_updates(name):
    params = adapters()
    found = dict(networks.merged(Method(name, density=0.4), members(params)))
    if name == "ties":
        for module in ("lora/m", "lora/n"):
            deltas = multiplied(params, module)
            np.testing.assert_allclose(
                found[module], methods.elementwise("ties", deltas, 0.4, np.random.default_rng(0)), atol=1e-5
            )
    other = dict(networks.merged(Method(name, density=0.4, seed=1), members(params)))
    same = all(np.array_equal(found[m], other[m]) for m in found)
    assert same == (name == "ties")


@pytest.mark.parametrize("name", methods.METHODS)
def test_how_updates_are_factored_does_not_matter(name):
    """Each adapter's factors are mixed by another invertible matrix; the merge stays the same."""
    random = np.random.default_rng(5)
    params = adapters(2)
    mixed = random.standard_normal((2, 2, 2)) + 3 * np.eye(2)
    other = {
        p: (v @ mixed if p.endswith("B") else np.linalg.solve(mixed, v)).astype(np.float32) for p, v in params.items()
    }
    method = Method(name, density=0.5, t=0.4)
    pairs = zip(networks.merged(method, members(params)), networks.merged(method, members(other)), strict=True)
    for (_, a), (_, b) in pairs:
        np.testing.assert_allclose(whole(a), whole(b), atol=1e-4)


def test_several_networks_of_a_member_count_as_their_mean():
    params = adapters(3)
    for module, piece in networks.merged(Method("mean"), members(params, groups=[np.array([0, 1]), np.array([2])])):
        deltas = multiplied(params, module)
        np.testing.assert_allclose(whole(piece), (deltas[0] + deltas[1]) / 4 + deltas[2] / 2)


def test_plain_networks_are_merged_by_what_they_changed():
    """By hand, with base 10: changes (4, -1) and (-2, 3). TIES keeps one of each: 4 and 3."""
    params, base = {"w": np.array([[14.0, 9.0], [8.0, 13.0]], np.float32)}, {"w": np.array([10.0, 10.0], np.float32)}

    def merge(name, base=base, **how):
        ((path, value),) = networks.merged(Method(name, **how), members(params, base, adapter=False))
        assert path == "w" and value.dtype == np.float32
        return value

    np.testing.assert_array_equal(merge("ties", density=0.5), [14, 13])
    np.testing.assert_array_equal(merge("dare", density=1.0), [11, 11])
    np.testing.assert_array_equal(merge("mean"), [11, 11])
    np.testing.assert_array_equal(merge("lerp", t=0.25), [12.5, 10])
    np.testing.assert_array_equal(merge("lerp", None, t=0.25), [12.5, 10])
    np.testing.assert_allclose(merge("slerp", t=0.5), 10 + expected(Method("slerp"), np.array([[4, -1], [-2, 3.0]])))
    np.testing.assert_allclose(
        merge("slerp", None, t=0.5), expected(Method("slerp"), params["w"].astype(float)), rtol=1e-6
    )


def test_heads_beside_adapters_are_merged_by_their_mean_where_their_base_is_not_known():
    params = adapters(2, **{"whole/head": (3,)})
    base = {p: np.ones(v.shape[1:], np.float32) for p, v in params.items()}
    unknown = dict(networks.merged(Method("ties", density=0.3), members(params)))
    np.testing.assert_allclose(unknown["whole/head"], params["whole/head"].mean(0), rtol=1e-6)
    known = dict(networks.merged(Method("ties", density=0.3), members(params, base)))
    wanted = 1 + methods.elementwise("ties", params["whole/head"].astype(float) - 1, 0.3, np.random.default_rng(0))
    np.testing.assert_allclose(known["whole/head"], wanted, rtol=1e-6)
    assert list(known) == ["lora/m", "lora/n", "whole/head"]


def test_at_rank_is_the_nearest_network_and_tells_what_is_lost():
    params = adapters(3, **{"whole/head": (3,)})
    pieces = list(networks.merged(Method("mean"), members(params)))
    network, error = networks.at_rank(iter(pieces), params)
    assert {p: v.shape for p, v in network.items()} == {p: (1, *v.shape[1:]) for p, v in params.items()}
    rest = norm = 0.0
    for module in ("lora/m", "lora/n"):
        wanted = multiplied(params, module).mean(0)
        singular = np.linalg.svd(wanted, compute_uv=False)
        rest, norm = rest + (singular[2:] ** 2).sum(), norm + (singular**2).sum()
        left = np.linalg.norm(wanted - multiplied(network, module)[0])
        assert left == pytest.approx(np.sqrt((singular[2:] ** 2).sum()), rel=1e-5)
    assert error == pytest.approx(np.sqrt(rest / norm))
    _, weighed = networks.at_rank(iter(pieces), params, {"lora/n": 1e-6})
    alone = np.linalg.svd(multiplied(params, "lora/m").mean(0), compute_uv=False)
    assert weighed == pytest.approx(np.sqrt((alone[2:] ** 2).sum() / (alone**2).sum()))


def test_a_merge_that_fits_loses_nothing():
    """Adapters that share A: their mean has their rank."""
    params = adapters(3)
    params = {p: v[:1].repeat(3, 0) if p.endswith("A") else v for p, v in params.items()}
    network, error = networks.at_rank(networks.merged(Method("mean"), members(params)), params)
    assert error < 1e-7
    for module in ("lora/m", "lora/n"):
        np.testing.assert_allclose(multiplied(network, module)[0], multiplied(params, module).mean(0), atol=1e-6)


def test_numbers_are_those_of_updates_that_are_multiplied_out():
    assert members(adapters(4, **{"whole/head": (3, 2)})).numbers == 4 * (5 * 7 + 6 * 3 + 6)
