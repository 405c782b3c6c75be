"""The zoos of the benchmark of sizes, whose truth is known, and the distances that it computes from inner products."""

import types

import numpy as np
import pytest
import safetensors.numpy

from benchmarks import size
from pdiff.controls.neighbours import Nearest
from pdiff.controls.ridge import Ridge
from pdiff.tasks.base import Family, Task

COUNT = 20


@pytest.fixture
def small(monkeypatch):
    """A size of 132 weights, in slices of 50."""
    monkeypatch.setitem(size.SIZES, "tiny", (11, 1))
    monkeypatch.setattr(size, "SLICE", 50)
    return "tiny"


def family():
    factors = size.seen_factors(COUNT).tolist()
    tasks = tuple(Task(f"t{i}", i, "seen", tuple(f), (size.described(np.array(f)),), ()) for i, f in enumerate(factors))
    variables, names = np.zeros((COUNT, 0), np.float32), ("warmth", "sharpness")
    return Family("made_up", names, (0.0, 0.0), 0, (0,), {}, tasks, variables, lambda variables, x: x, None)


def whole(curve, waves, noise=0):
    parts = [
        shared + waves @ directions + (curve.noise(noise, part) if noise else 0)
        for part, shared, directions in curve.slices()
    ]
    return np.concatenate(parts, 1)


def test_each_size_is_within_a_tenth_of_its_name():
    for name, number in {"10k": 1e4, "100k": 1e5, "1M": 1e6, "10M": 1e7, "100M": 1e8}.items():
        assert size.num_params(name) == pytest.approx(number, rel=0.1)


def test_files_hold_the_curve_and_noise(small, tmp_path):
    size.make_zoo(tmp_path / "source", small, COUNT)
    curve, factors = size.Curve(small), size.seen_factors(COUNT)
    expected = whole(curve, curve.waves(factors), COUNT)
    assert len(list((tmp_path / "source").glob("*.safetensors"))) == COUNT
    for i in (0, 7, COUNT - 1):
        arrays = safetensors.numpy.load_file(tmp_path / "source" / f"network_{i:03d}.safetensors")
        assert {k: v.shape for k, v in arrays.items()} == size.leaves(small)
        flat = np.concatenate([arrays[path].reshape(-1) for path in size.leaves(small)])
        np.testing.assert_allclose(flat, expected[i], atol=1e-6)
    lines = (tmp_path / "source" / "manifest.csv").read_text().splitlines()
    assert len(lines) == COUNT + 1 and size.described(factors[3]) in lines[4]


def test_noise_and_signal_are_as_large_as_they_say():
    curve = size.Curve("10k")
    tested = size.other_factors(0)
    assert np.std(whole(curve, curve.waves(tested)) - whole(curve, np.zeros((1, size.WAVES)))) == pytest.approx(
        size.SIGNAL, rel=0.3
    )
    noise = whole(curve, curve.waves(size.seen_factors(COUNT)), COUNT) - whole(
        curve, curve.waves(size.seen_factors(COUNT))
    )
    assert noise.std() == pytest.approx(size.NOISE, rel=0.01)
    assert not set(map(tuple, tested)) & set(map(tuple, size.seen_factors(128)))


def test_distances_from_inner_products_are_the_distances(small):
    curve, seen, tested = size.Curve(small), size.seen_factors(COUNT), size.other_factors(0)
    drawn = np.random.default_rng(0).standard_normal((size.TESTED, size.num_params(small))).astype(np.float32)
    gram, blocks = size._products(curve, seen, [tested, size.other_factors(1)], [drawn])
    truth, networks = whole(curve, curve.waves(tested)), whole(curve, curve.waves(seen), COUNT)
    expected = np.linalg.norm(drawn - truth, axis=1)
    np.testing.assert_allclose(size._between(gram, blocks["drawn 0"], blocks["tested"]), expected, rtol=1e-5)
    weights = np.random.default_rng(1).dirichlet(np.ones(COUNT), size.TESTED)
    rows = np.zeros((size.TESTED, len(gram)))
    rows[:, blocks["zoo"]] = weights
    expected = np.linalg.norm(weights @ networks - truth, axis=1)
    np.testing.assert_allclose(size._norms(gram, rows, blocks["tested"]), expected, rtol=1e-4)


@pytest.mark.parametrize("fit", [Nearest.fit, lambda zoo: Ridge.fit(zoo, 2, 0.01)])
def test_controls_of_unit_vectors_are_coefficients(small, fit):
    """What they make of the networks themselves."""
    curve, made = size.Curve(small), family()
    networks = whole(curve, curve.waves(size.seen_factors(COUNT)), COUNT).astype(np.float32)
    zoo = size._identity_zoo(made, COUNT)
    real = type(zoo)(made, networks[:, None], networks.mean(0)[None], zoo.task, zoo.seed)
    tasks = [Task("new", -1, "unseen", tuple(f.tolist()), ("",), ()) for f in size.other_factors(0)]
    weights, direct = (fit(z).sample(tasks, 1, np.random.default_rng(0)).reshape(16, -1) for z in (zoo, real))
    np.testing.assert_allclose(weights @ networks, direct, atol=1e-5)


def test_linear_interpolation_is_exact_for_linear_functions():
    seen, tested = size.seen_factors(128), size.other_factors(0)
    weights = size._barycentric(seen, tested)
    assert ((weights > 1e-9).sum(1) <= 3).all() and np.isfinite(weights).all()
    np.testing.assert_allclose(weights @ seen, tested, atol=1e-9)
    np.testing.assert_allclose(weights.sum(1), 1)


def test_factors_are_in_the_order_of_the_family():
    named = types.SimpleNamespace(factor_names=tuple(reversed(size.FACTORS)))
    assert size.in_order_of(named, np.array([[1.0, 2.0]])).tolist() == [[2.0, 1.0]]


def test_slopes_are_exponents():
    rows = [{"params": 10**n, "total_s": 3.0 * 10 ** (0.5 * n), "cpu_s": 10.0**n, "peak_gib": 2.0} for n in (4, 6, 7)]
    assert size.slopes(rows) == pytest.approx({"total_s": 0.5, "cpu_s": 1.0, "peak_gib": 0.0})
    assert size.slopes(rows[:1]) == {}


def test_what_a_process_takes_is_measured():
    found = size.measured(["python", "-c", "x = bytearray(1 << 28); print('{\"a\": 1}')"])
    assert found["a"] == 1 and 0.25 < found["gib"] < 0.6 and min(found["cpu_s"], found["s"]) > 0
    with pytest.raises(SystemExit, match="broken"):
        size.measured(["python", "-c", "raise ValueError('broken')"])
