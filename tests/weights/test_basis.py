"""A basis on disk against the networks that it came from, and against the same in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from pdiff.errors import PdiffError
from pdiff.weights import basis, codec, stats, table
from pdiff.weights.spec import make_spec

COUNT = 12


@pytest.fixture
def spec():
    leaves = {"kernel": jax.ShapeDtypeStruct((6, 9), np.float32), "bias": jax.ShapeDtypeStruct((9,), np.float32)}
    return make_spec(leaves, token_dim=16)


def drawn(count, seed=0, noise=0.0):
    """Networks of four directions, very unlike in size, around a centre, with one constant weight."""
    random, fixed = np.random.default_rng(seed), np.random.default_rng(77)
    center, directions = fixed.standard_normal(63), fixed.standard_normal((4, 63)) * 10.0 ** -np.arange(4)[:, None]
    flat = center + random.standard_normal((count, 4)) @ directions + noise * random.standard_normal((count, 63))
    flat[:, 20] = 2.5
    return {"bias": flat[:, :9].astype(np.float32), "kernel": flat[:, 9:].reshape(-1, 6, 9).astype(np.float32)}


def fitted(spec, networks, where, rows=None, dtype="float32", **how):
    rows_of = table.InMemory(spec, networks)
    statistics = stats.fit_table(spec, rows_of, **how)
    basis.fit(spec, rows_of, statistics, np.arange(COUNT) if rows is None else rows, where / "basis", dtype)
    return basis.read(spec, where / "basis")


def flat(spec, networks):
    return codec.encode_stacked(spec, networks).reshape(-1, spec.num_tokens * spec.token_dim)[:, : spec.num_params]


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setattr(table, "SLICE", 10 * COUNT)
    monkeypatch.setattr(basis, "READ", 55)


@pytest.mark.parametrize("scale", stats.SCALES)
def test_its_networks_come_back_from_their_coordinates(spec, tmp_path, scale):
    networks = drawn(COUNT, noise=1e-3)
    found, statistics = fitted(spec, networks, tmp_path, scale=scale)
    assert found.count == COUNT - 1 and found.seen.shape == (COUNT, COUNT - 1)
    again = found.decode(found.seen)
    np.testing.assert_allclose(flat(spec, again), flat(spec, networks), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(again["kernel"][:, 1, 2], 2.5)  # what is constant stays so, bit for bit
    np.testing.assert_allclose(found.encode(networks), found.seen, atol=2e-3)
    assert np.square(found.seen).mean() == pytest.approx(1, rel=1e-5)
    # Distances of coordinates are those of normalised weights, but for one factor, which is 1 around the mean.
    z = np.asarray(stats.normalize(statistics, codec.encode_stacked(spec, networks)))
    own = np.square(z[0] - z[1:]).sum((1, 2)) / (np.asarray(statistics.scale) > 0).sum()
    np.testing.assert_allclose(np.square(found.seen[0] - found.seen[1:]).mean(1), own, rtol=1e-4)


def test_it_spans_what_the_networks_span_and_no_more(spec, tmp_path):
    found, _ = fitted(spec, drawn(COUNT), tmp_path)
    assert found.count == 4
    others = drawn(5, seed=1)
    np.testing.assert_allclose(flat(spec, found.decode(found.encode(others))), flat(spec, others), atol=1e-4)


def test_networks_beyond_those_it_is_computed_from_have_coordinates_too(spec, tmp_path):
    networks, rows = drawn(COUNT), np.array([0, 2, 3, 5, 8, 11])
    found, _ = fitted(spec, networks, tmp_path, rows)
    assert found.seen.shape == (COUNT, 4)
    np.testing.assert_allclose(flat(spec, found.decode(found.seen)), flat(spec, networks), atol=1e-4)
    assert np.square(found.seen[rows]).mean() == pytest.approx(1, rel=1e-5)


def test_bfloat16_takes_half_and_keeps_three_digits(spec, tmp_path):
    networks = drawn(COUNT)
    found, _ = fitted(spec, networks, tmp_path, dtype="bfloat16")
    assert found.nbytes == 63 * 4 * 2
    moved = flat(spec, networks) - found.center
    left = np.abs(flat(spec, found.decode(found.seen)) - found.center - moved)
    assert 0 < left.max() < 0.01 * np.abs(moved).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_memory_it_is_the_same_under_jit(spec, tmp_path, dtype):
    networks = drawn(COUNT)
    found, _ = fitted(spec, networks, tmp_path, dtype=dtype)
    loaded = jax.tree.map(jnp.asarray, found.load())
    rtol = 1e-5 if dtype == "float32" else 2e-2
    decoded = jax.jit(loaded.decode)(found.seen)
    np.testing.assert_allclose(flat(spec, jax.tree.map(np.asarray, decoded)), flat(spec, networks), rtol, 3 * rtol)
    np.testing.assert_allclose(jax.jit(loaded.encode)(networks), found.encode(networks), rtol, 3 * rtol)


def test_the_file_is_safetensors_with_the_leaves_by_path(spec, tmp_path):
    found, _ = fitted(spec, drawn(COUNT), tmp_path)
    arrays = safetensors.numpy.load_file(tmp_path / "basis" / basis.COMPONENTS)
    assert {k: v.shape for k, v in arrays.items()} == {"bias": (9, 4), "kernel": (54, 4)}
    np.testing.assert_array_equal(arrays["kernel"], found.load().components["kernel"])


def test_leaves_of_other_dtypes_come_back_as_such(tmp_path):
    leaves = {"h": jax.ShapeDtypeStruct((30,), jnp.bfloat16), "n": jax.ShapeDtypeStruct((4,), np.int8)}
    spec, random = make_spec(leaves, token_dim=8), np.random.default_rng(0)
    networks = {"h": random.standard_normal((COUNT, 30)).astype(jnp.bfloat16),
                "n": random.integers(-9, 9, (COUNT, 4)).astype(np.int8)}  # fmt: skip
    found, _ = fitted(spec, networks, tmp_path)
    again = found.decode(found.seen)
    np.testing.assert_array_equal(again["n"], networks["n"])
    assert again["h"].dtype == jnp.bfloat16


def test_what_has_no_basis_is_refused(spec, tmp_path):
    with pytest.raises(PdiffError, match="basis: got 1 network; allowed: at least 2"):
        fitted(spec, drawn(COUNT), tmp_path, np.arange(1))
    networks = drawn(COUNT)
    same = jax.tree.map(lambda x: np.concatenate([x[:1].repeat(COUNT - 1, 0), x[-1:]]), networks)
    with pytest.raises(PdiffError, match="basis: all networks are the same"):
        fitted(spec, same, tmp_path, np.arange(COUNT - 1))


def test_a_basis_larger_than_the_disk_is_told_before_it_is_written(spec, tmp_path, monkeypatch):
    usage = basis.files.shutil._ntuple_diskusage(2000, 0, 2000)
    monkeypatch.setattr(basis.files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(PdiffError, match=r"No space left on device for the basis.* MB are needed.*make room"):
        fitted(spec, drawn(COUNT), tmp_path)
    assert not (tmp_path / "basis").exists()


def test_a_basis_of_other_networks_is_refused(spec, tmp_path):
    fitted(spec, drawn(COUNT), tmp_path)
    other = make_spec({"kernel": jax.ShapeDtypeStruct((9, 7), np.float32)}, token_dim=16)
    with pytest.raises(PdiffError, match="of other networks than this target's"):
        basis.read(other, tmp_path / "basis")


def test_on_disk_it_cannot_be_part_of_a_step(spec, tmp_path):
    found, _ = fitted(spec, drawn(COUNT), tmp_path)
    with pytest.raises(PdiffError, match="zoo.memory_mb: the basis of these networks takes 0 MB and stays on disk"):
        jax.jit(found.decode)(found.seen)
