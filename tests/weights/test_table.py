"""Tables of networks: the same numbers from memory and from disk, and statistics that do not depend on which."""

import os
import time

import jax
import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.weights import codec, stats, table
from pdiff.weights.spec import make_spec

COUNT = 9


@pytest.fixture
def spec():
    return make_spec(
        {
            "a": {"kernel": jax.ShapeDtypeStruct((3, 5), np.float32), "bias": jax.ShapeDtypeStruct((5,), np.float32)},
            "b": jax.ShapeDtypeStruct((7,), np.float16),
            "c": jax.ShapeDtypeStruct((), np.float32),
        },
        token_dim=8,
    )


@pytest.fixture
def networks():
    random = np.random.default_rng(0)
    drawn = {
        "a": {"kernel": 3 + random.standard_normal((COUNT, 3, 5)), "bias": 10 * random.standard_normal((COUNT, 5))},
        "b": random.standard_normal((COUNT, 7)).astype(np.float16),
        "c": random.standard_normal(COUNT),
    }
    drawn["a"]["kernel"][:, 1, 2] = 0.5  # constant
    return jax.tree.map(lambda x: x if x.dtype == np.float16 else x.astype(np.float32), drawn)


def blocks(networks, size):
    return (jax.tree.map(lambda x, i=i: x[i : i + size], networks) for i in range(0, COUNT, size))


def whole(spec, rows):
    """All slices side by side, after a check that they follow one another."""
    parts, at = [], 0
    for (_, start, stop), values in table.over(spec, rows, lambda span, values: (span, values)):
        assert start == at and values.shape == (len(rows), stop - start) and values.dtype == np.float32
        parts.append(values)
        at = stop
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_memory_and_disk_give_the_same_numbers(spec, networks, tmp_path, monkeypatch, size):
    monkeypatch.setattr(table, "SLICE", size * COUNT)
    expected = codec.encode_stacked(spec, networks).reshape(COUNT, -1)[:, : spec.num_params]
    np.testing.assert_array_equal(whole(spec, table.InMemory(spec, networks)), expected)
    on_disk = table.OnDisk(spec, blocks(networks, 4), COUNT, tmp_path)
    np.testing.assert_array_equal(whole(spec, on_disk), expected)
    np.testing.assert_array_equal(whole(spec, on_disk), expected)  # as often as one likes
    assert not list(tmp_path.iterdir())  # the file has no name


def test_slices_lie_within_a_leaf(spec, monkeypatch):
    monkeypatch.setattr(table, "SLICE", 4)
    for leaf, start, stop in table.spans(spec, 4):
        first = spec.starts[leaf]
        assert first <= start < stop <= first + spec.leaves[leaf].size and stop - start <= 4
    assert [spec.leaves[leaf].path for leaf, *_ in table.spans(spec, 10**9)] == ["a/bias", "a/kernel", "b", "c"]


@pytest.mark.parametrize("scale", stats.SCALES)
@pytest.mark.parametrize("center", stats.CENTERS)
def test_statistics_are_those_of_the_whole_zoo(spec, networks, monkeypatch, scale, center):
    monkeypatch.setattr(table, "SLICE", 4 * COUNT)
    tokens = codec.encode_stacked(spec, networks)
    how = {"scale": scale, "center": center, "base_tokens": tokens[3] + 1}
    expected, found = stats.fit(spec, tokens, **how), stats.fit_table(spec, table.InMemory(spec, networks), **how)
    np.testing.assert_allclose(found.center, expected.center, rtol=1e-6)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-6)
    assert (found.scale == 0).sum() == 1 + spec.num_tokens * spec.token_dim - spec.num_params


def test_what_is_not_finite_or_constant_is_refused(spec, networks):
    with pytest.raises(PdiffError, match="are the same in all 9 networks"):
        stats.fit_table(spec, table.InMemory(spec, jax.tree.map(lambda x: np.repeat(x[:1], COUNT, 0), networks)))
    networks["a"]["kernel"][5, 2, 1] = np.inf
    with pytest.raises(PdiffError, match="network 5 of the zoo has inf in 'a/kernel'"):
        stats.fit_table(spec, table.InMemory(spec, networks))


def test_a_disk_without_room_is_told(spec, networks, tmp_path, monkeypatch):
    monkeypatch.setattr(table.files.shutil, "disk_usage", lambda _: table.files.shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(PdiffError, match="No space left on device for the table of the zoo's weights"):
        table.OnDisk(spec, blocks(networks, 4), COUNT, tmp_path)


def test_a_file_that_ends_too_early_is_told(tmp_path):
    (tmp_path / "short").write_bytes(bytes(10))
    with open(tmp_path / "short", "rb") as file, pytest.raises(OSError, match="ends 6 bytes too early"):
        table.read_into(file.fileno(), np.empty(4, np.float32), 0)


def test_results_come_in_order_and_not_far_ahead():
    started = []

    def one(item):
        started.append(item)
        time.sleep(0.01 * (item % 3))
        return item * item

    taken = table.in_order(one, iter(range(1000)))
    assert [next(taken) for _ in range(7)] == [i * i for i in range(7)]
    assert len(started) < 7 + 4 * len(os.sched_getaffinity(0))
    taken.close()


def test_what_a_slice_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(table.in_order(lambda item: 1 // (item - 3), range(9)))
