"""The gauge keeps what adapters do, takes out how they are factored, and moves smoothly."""

import numpy as np
import pytest

from pdiff.imports import gauge
from pdiff.imports.columns import Columns
from tests.imports import zoos


def zoo(count=9, seed=0):
    random = np.random.default_rng(seed)
    pairs = [zoos.update(s, 0) for s in np.linspace(0, 1, count)]
    mixed = [random.standard_normal((2, 2)) + 2 * np.eye(2) for _ in pairs]
    b = np.stack([b @ m for (b, _), m in zip(pairs, mixed, strict=True)])
    a = np.stack([np.linalg.solve(m, a) for (_, a), m in zip(pairs, mixed, strict=True)])
    return b, a


def test_updates_stay_and_factorings_go():
    seen = np.arange(9)
    (b, a), (other_b, other_a) = zoo(), zoo(seed=1)
    left, right = gauge.canonical(b, a, seen)
    np.testing.assert_allclose(left @ right, b @ a, atol=1e-12)
    again = gauge.canonical(other_b, other_a, seen)  # the same updates, factored otherwise
    for one, two in zip((left, right), again, strict=True):
        np.testing.assert_allclose(np.einsum("nij,mij->nm", one, one), np.einsum("nij,mij->nm", two, two), atol=1e-10)
    np.testing.assert_allclose(left.swapaxes(1, 2) @ left, right @ right.swapaxes(1, 2), atol=1e-10)


def test_neighbours_stay_neighbours():
    b, a = zoo(33)
    left, _ = gauge.canonical(b, a, np.arange(33))
    steps = np.linalg.norm(np.diff(left, axis=0), axis=(1, 2))
    assert steps.max() < 0.1 * np.linalg.norm(left, axis=(1, 2)).mean()
    raw = np.linalg.norm(np.diff(b, axis=0), axis=(1, 2))
    assert raw.mean() > 10 * steps.mean()


def test_held_out_networks_choose_nothing():
    b, a = zoo()
    seen = np.arange(6)
    left, _ = gauge.canonical(b, a, seen)
    b[8] *= 3
    np.testing.assert_array_equal(gauge.canonical(b, a, seen)[0][:8], left[:8])


@pytest.mark.parametrize("shape", [(1, 4, 6), (5, 8, 3), (3, 2, 8)])  # rank 1; above one side; above the other
def test_any_rank_and_zero_updates(shape):
    outputs, rank, inputs = shape
    random = np.random.default_rng(0)
    b, a = random.standard_normal((3, outputs, rank)), random.standard_normal((3, rank, inputs))
    b[1] = 0
    left, right = gauge.canonical(b, a, np.arange(3))
    assert left.shape == b.shape and right.shape == a.shape
    np.testing.assert_allclose(left @ right, b @ a, atol=1e-12)


@pytest.mark.parametrize("memory", [0, 1e6])
def test_float32_keeps_updates_of_any_size(memory, tmp_path):
    b, a = zoo()
    for size in (1e-15, 1.0, 1e15):
        given = {"lora/m/A": (size * a).astype(np.float32), "lora/m/B": (b / 10).astype(np.float32)}
        columns = Columns({p: v.shape[1:] for p, v in given.items()}, 9, memory, tmp_path)
        for path, values in given.items():
            for row, value in enumerate(values):
                columns.write(path, row, value)
        gauge.of_all(columns, np.arange(9))
        made = {p: columns.read(p) for p in given}
        assert columns.on_disk == (memory == 0)
        expected = given["lora/m/B"].astype(float) @ given["lora/m/A"]
        found = made["lora/m/B"].astype(float) @ made["lora/m/A"]
        assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_the_base_that_adapters_started_from_comes_into_their_gauge(tmp_path):
    b, a = zoo()
    columns = Columns({"lora/m/A": a.shape[1:], "lora/m/B": b.shape[1:], "whole/bias": (3,)}, 9, 1e6, tmp_path)
    for row in range(9):
        columns.write("lora/m/A", row, a[row].astype(np.float32))
        columns.write("lora/m/B", row, b[row].astype(np.float32))
    mixed = np.array([[2.0, 1.0], [-1.0, 0.5]])  # the fourth network's update, factored otherwise
    given = {"lora/m/B": b[3] @ mixed, "lora/m/A": np.linalg.solve(mixed, a[3]), "whole/bias": np.arange(3)}
    base = gauge.of_all(columns, np.arange(9), {p: v.astype(np.float32) for p, v in given.items()})
    for path in ("lora/m/A", "lora/m/B"):
        np.testing.assert_allclose(base[path], columns.read(path, [3])[0], atol=1e-5)
    np.testing.assert_array_equal(base["whole/bias"], given["whole/bias"])
