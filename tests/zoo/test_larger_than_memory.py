"""A zoo whose parameters stay on disk is the same zoo."""

import dataclasses
import weakref

import jax
import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.generator import generator, refined
from pdiff.targets import get_target
from pdiff.tasks import get_family
from pdiff.training import data
from pdiff.zoo import parts, store
from pdiff.zoo.networks import Networks, StoredNetworks


@pytest.fixture(scope="module")
def stored(tiny_zoo, tmp_path_factory):
    """The tiny zoo, of whose 24 seen networks only 15 fit: one of each of the 12 tasks, not two."""
    where = tmp_path_factory.mktemp("stored")
    size = store.SHARD_NETWORKS
    store.SHARD_NETWORKS = 7  # several shards
    store.write(where, "abc", tiny_zoo)
    store.SHARD_NETWORKS = size
    one = tiny_zoo["seen"].params_bytes / len(tiny_zoo["seen"])
    return store.read(where, "abc", 15 * one / 1e6)


def equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_only_what_is_asked_for_is_read_and_it_is_the_same(stored, tiny_zoo):
    lazy, held = stored["seen"], tiny_zoo["seen"]
    assert isinstance(lazy, StoredNetworks) and all(isinstance(n, Networks) for s, n in stored.items() if s != "seen")
    assert len(lazy) == len(held) and lazy.params_bytes == held.params_bytes
    for name in ("task", "seed", "step", "validation_accuracy", "test_accuracy"):
        np.testing.assert_array_equal(getattr(lazy, name), getattr(held, name))
    for rows in (np.array([20, 3, 3, 0]), slice(5, 12), np.arange(len(held)) % 5 == 2, slice(None)):
        assert equal(lazy[rows], held[rows])
    blocks = list(lazy.blocks(10))
    assert [len(b) for b in blocks] == [10, 10, 4] and equal(Networks.concatenate(blocks), held)
    assert equal(blocks, list(held.blocks(10)))


def test_training_sees_the_same_batches(stored, tiny_zoo):
    how = dict(seed=3, batch_size=8, start=1, stop=5, rows=np.array([0, 2, 5]))
    pairs = list(zip(*(data.training_batches(z["seen"], 4, **how) for z in (stored, tiny_zoo)), strict=True))
    assert len(pairs) == 4 and all(equal(a, b) for a, b in pairs)
    assert data.fingerprint(stored["seen"], "z", 0, 8) == data.fingerprint(tiny_zoo["seen"], "z", 0, 8)


def test_the_generator_is_the_same(stored, tiny_config, tiny, tiny_zoo, mesh, monkeypatch):
    family = get_family(tiny_config.tasks)
    target = get_target(tiny_config.target, family.image_shape, family.num_classes)
    monkeypatch.setattr(generator.stats, "BLOCK_ELEMENTS", 5 * tiny.spec.num_params)  # five blocks, not one
    made = generator.make_generator(tiny_config.copy_and_resolve_references(), family, target, stored)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), made.stats, tiny.stats)
    with made.config.unlocked():
        made.config.refined.of = "zoo"
    ours, theirs = (refined.refine(made, tiny.mean_params, z["seen"], mesh).refined for z in (stored, tiny_zoo))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_what_needs_all_at_once_gets_as_many_of_each_task_as_fit(stored, tiny_zoo):
    sample, held = store.in_memory(stored), tiny_zoo["seen"]
    tasks, counts = np.unique(sample["seen"].task, return_counts=True)
    assert set(tasks) == set(held.task) and set(counts) == {1}
    own = np.flatnonzero(np.isin(held.task, tasks) & (held.seed == 0))
    assert equal(sample["seen"], held[own])
    assert sample["seen"].params_bytes <= stored["seen"].memory
    assert all(sample[s] is stored[s] for s in stored if s != "seen")
    assert store.in_memory(tiny_zoo)["seen"] is held


def test_too_little_memory_for_one_network_of_each_task_is_refused():
    store.check_memory(12.0, 12, 10**6)
    with pytest.raises(PdiffError, match="zoo.memory_mb: got 11.9; allowed: at least 12, .* the 12 seen tasks"):
        store.check_memory(11.9, 12, 10**6)


def test_parts_of_any_division_cover_what_is_asked_for(tiny_zoo, tmp_path):
    """Four processes made two chunks, one process a third; rows are then asked for as three processes would."""
    held = tiny_zoo["seen"][:20]
    for start, stop in ((0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 20)):
        parts.keep_rows(tmp_path, start, held[start:stop])
    found = parts.Parts(tmp_path)
    for start, stop in ((0, 3), (3, 11), (11, 20), (13, 14), (0, 20)):
        assert found.hold(start, stop) and equal(found.read(start, stop), held[start:stop])
    assert not found.hold(0, 21) and not found.hold(20, 21)
    rows = parts.Rows(found, 5, 15)
    assert len(rows) == 10 and equal(rows[2:4], held[7:9]) and equal(rows[:], held[5:15])
    with pytest.raises(PdiffError, match="networks 19 to 22 are not kept"):
        found.read(19, 23)


def test_a_damaged_part_holds_nothing_unless_another_has_the_same(tiny_zoo, tmp_path):
    held = tiny_zoo["seen"]
    for start, stop in ((0, 4), (4, 8), (0, 2)):
        parts.keep_rows(tmp_path, start, held[start:stop])
    (victim,) = tmp_path.glob("rows_00000000_00000004*")
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x7f")
    found = parts.Parts(tmp_path)
    assert found.hold(4, 8) and found.hold(0, 2) and not victim.exists()
    assert not found.hold(0, 3)
    parts.keep_rows(tmp_path, 2, held[2:4])
    again = parts.Parts(tmp_path)
    assert again.hold(0, 8) and equal(again.read(0, 8), held[:8])


class Watched:
    """Networks as `parts.Rows` has them: slices are brought into memory. It counts the networks that still are."""

    def __init__(self, networks):
        self._networks, self._now, self.most = networks, 0, 0

    def __len__(self):
        return len(self._networks)

    def __getitem__(self, rows):
        made = jax.tree.map(np.copy, self._networks[rows])
        self._now += len(made)
        self.most = max(self.most, self._now)
        weakref.finalize(made, self._gone, len(made))
        return made

    def _gone(self, count):
        self._now -= count


def test_writing_holds_one_shard_at_a_time(tiny_zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_NETWORKS", 5)
    watched = {s: Watched(n) for s, n in tiny_zoo.items()}
    store.write(tmp_path, "abc", watched)
    assert watched["seen"].most == 5 and max(w.most for w in watched.values()) == 5
    again = store.read(tmp_path, "abc")
    assert all(equal(again[s], tiny_zoo[s]) for s in tiny_zoo)


@pytest.mark.parametrize(("network_bytes", "each"), [(4 * 10**6, 16), (10**4, 4096), (10**9, 1)])
def test_shards_are_of_64_mb_or_4096_networks_and_cover_every_network_once(tmp_path, network_bytes, each):
    shards = store._plan(tmp_path, "seen", 10_000, network_bytes)
    rows = np.concatenate([np.arange(10_000)[s.rows] for s in shards])
    np.testing.assert_array_equal(rows, np.arange(10_000))
    assert {s.rows.stop - s.rows.start for s in shards[:-1]} == {each}
    assert shards[-1].path.name == f"pdiff_zoo-seen.array_record-{len(shards) - 1:05d}-of-{len(shards):05d}"


def test_a_zoo_of_which_not_one_of_each_task_fits_is_not_sampled(stored):
    one = stored["seen"].params_bytes / len(stored["seen"])
    assert store.holds_one_of_each(stored["seen"])
    few = dataclasses.replace(stored["seen"], memory=11.5 * one)
    assert not store.holds_one_of_each(few)
    with pytest.raises(PdiffError, match="zoo.memory_mb: got .*; allowed: at least .* the 12 seen tasks"):
        store.in_memory({"seen": few})
