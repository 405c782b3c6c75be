"""The zoo on disk: exact, resumable, and honest about damage."""

import json
import shutil

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from pdiff import config as config_lib
from pdiff.errors import PdiffError
from pdiff.system import files, stopping
from pdiff.targets import get_target
from pdiff.tasks import get_family
from pdiff.zoo import build, store


@pytest.fixture(scope="module")
def parts(tiny_config):
    family = get_family(tiny_config.tasks)
    return family, get_target(tiny_config.target, family.image_shape, family.num_classes)


def make(parts, config, where, mesh, stop=None):
    return build.build(*parts, config, where, mesh, stop or stopping.StopSignal())


class StopsAfter(stopping.StopSignal):
    """A signal that comes once `chunks` chunks are made."""

    def __init__(self, chunks):
        super().__init__()
        self.left = chunks

    def check(self, where):
        if self.left == 0:
            raise stopping.Interrupted(where, 15)
        self.left -= 1


def equal(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_what_is_read_is_what_was_written(tiny_zoo, tmp_path):
    store.write(tmp_path, "abc", tiny_zoo)
    again = store.read(tmp_path, "abc")
    assert set(again) == set(tiny_zoo)
    assert all(equal(again[s], tiny_zoo[s]) for s in tiny_zoo)


def test_any_tfds_reader_can_use_it(tiny_zoo, tmp_path):
    store.write(tmp_path, "abc", tiny_zoo)
    source = tfds.builder_from_directory(str(store.location(tmp_path, "abc"))).as_data_source("seen")
    kernel = tiny_zoo["seen"].params["params"]["Dense_0"]["kernel"]
    assert len(source) == len(kernel)
    np.testing.assert_array_equal(source[5]["params"]["params"]["Dense_0"]["kernel"], kernel[5])


def test_records_are_complete_and_say_who_they_are(tiny_zoo, tiny_config, parts):
    family, target = parts
    zoo = tiny_config.zoo
    seen = tiny_zoo["seen"]
    assert len(seen) == len(family.split("seen")) * zoo.seeds_per_task
    for split in ("validation", "interp", "unseen"):
        assert set(tiny_zoo[split].task) == {t.id for t in family.split(split)}
    i = len(seen) - 1
    x = family.render(family.variables[seen.task[i]], family.data["test"].x)
    logits = target.apply(jax.tree.map(lambda a: a[i], seen.params), x)
    assert np.mean(logits.argmax(-1) == family.data["test"].y) == pytest.approx(seen.test_accuracy[i], abs=1e-6)


def test_an_interrupted_build_goes_on_and_ends_the_same(parts, tiny_config, tiny_zoo, mesh, tmp_path):
    with pytest.raises(stopping.Interrupted, match="networks of the zoo kept"):
        make(parts, tiny_config, tmp_path, mesh, StopsAfter(2))
    kept = sorted(p.name for p in tmp_path.rglob("rows_*"))
    assert len(kept) == 2
    whole = make(parts, tiny_config, tmp_path, mesh)
    assert all(equal(whole[s], tiny_zoo[s]) for s in tiny_zoo)
    assert not list(tmp_path.rglob("*.parts"))


def test_a_damaged_part_is_made_again(parts, tiny_config, tiny_zoo, mesh, tmp_path):
    with pytest.raises(stopping.Interrupted):
        make(parts, tiny_config, tmp_path, mesh, StopsAfter(1))
    (part,) = tmp_path.rglob("rows_*")
    data = bytearray(part.read_bytes())
    data[-9] ^= 1
    part.write_bytes(data)
    whole = make(parts, tiny_config, tmp_path, mesh)
    assert equal(whole["seen"], tiny_zoo["seen"])


def test_four_devices_build_the_same_zoo(parts, tiny_config, tiny_zoo, mesh4, tmp_path):
    whole = make(parts, tiny_config, tmp_path, mesh4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole["seen"].params, tiny_zoo["seen"].params
    )


def test_another_config_is_another_zoo(tiny_config):
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.zoo.learning_rate *= 2
    assert config_lib.zoo_fingerprint(config) != config_lib.zoo_fingerprint(tiny_config)
    with config.unlocked():
        config.zoo.learning_rate /= 2
        config.zoo.dir = "/elsewhere"
        config.train.steps += 1
    assert config_lib.zoo_fingerprint(config) == config_lib.zoo_fingerprint(tiny_config)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_found_and_named(tiny_zoo, tmp_path, damage):
    store.write(tmp_path, "abc", tiny_zoo)
    victim = next(p for p in store.location(tmp_path, "abc").iterdir() if "seen" in p.name)
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
        victim.write_bytes(data)
    elif damage == "truncate":
        victim.write_bytes(data[:-100])
    else:
        victim.unlink()
    with pytest.raises(PdiffError, match=victim.name):
        store.read(tmp_path, "abc")


def digests(where, config):
    return files.read_manifest(store.location(where, config_lib.zoo_fingerprint(config)), store.KIND, "")


@pytest.fixture(scope="module")
def built(parts, tiny_config, mesh, tmp_path_factory):
    """A zoo in shards of five networks, and those of its chunks that a build then trains."""
    where = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store, "SHARD_NETWORKS", 5)
        make(parts, tiny_config, where, mesh)
    return where


@pytest.mark.parametrize(
    "names, chunks",
    [
        (["seen.array_record-00002"], 1),
        (["unseen.array_record-00000", "task_blind.array_record-00000"], 1),
        (["base.safetensors", "features.json", "dataset_info.json"], 0),
    ],
)
def test_damaged_files_are_made_again_alone_with_the_same_bits(
    parts, tiny_config, mesh, built, tmp_path, monkeypatch, said, names, chunks
):
    monkeypatch.setattr(store, "SHARD_NETWORKS", 5)
    where = tmp_path / "zoo"
    shutil.copytree(built, where)
    before, home = digests(where, tiny_config), store.location(where, config_lib.zoo_fingerprint(tiny_config))
    victims = [p for p in home.iterdir() if any(n in p.name for n in names)]
    assert len(victims) == len(names)
    times = {p: p.stat().st_mtime_ns for p in home.iterdir() if p not in victims and p.name != files.MANIFEST}
    for victim in victims:
        data = bytearray(victim.read_bytes())
        data[len(data) // 3] ^= 32
        victim.write_bytes(data)
    made = []
    keep_rows = build.parts.keep_rows
    monkeypatch.setattr(build.parts, "keep_rows", lambda *a: made.append(a) or keep_rows(*a))
    make(parts, tiny_config, where, mesh)
    assert digests(where, tiny_config) == before and store.is_whole(where, config_lib.zoo_fingerprint(tiny_config))
    assert times == {p: p.stat().st_mtime_ns for p in times} and len(made) == chunks
    assert all(f"{v}: damaged" in said() for v in victims) and "other bits" not in said()


def test_a_zoo_whose_manifest_is_damaged_is_built_again(parts, tiny_config, mesh, built, tmp_path, said):
    where = tmp_path / "zoo"
    shutil.copytree(built, where)
    manifest = store.location(where, config_lib.zoo_fingerprint(tiny_config)) / files.MANIFEST
    before = digests(where, tiny_config)
    manifest.write_text(manifest.read_text().replace("seen", "sein", 1))
    whole = make(parts, tiny_config, where, mesh)
    assert "manifest.json: damaged" in said()
    assert len(whole["seen"]) == 24
    assert digests(where, tiny_config).keys() != before.keys()  # in shards of the usual size


def test_a_zoo_of_another_format_is_refused_by_its_number(parts, tiny_config, mesh, built, tmp_path, monkeypatch):
    where = tmp_path / "zoo"
    shutil.copytree(built, where)
    monkeypatch.setattr(files, "FORMAT", files.FORMAT + 1)
    with pytest.raises(PdiffError, match=f"of format {files.FORMAT - 1}; this pdiff reads format {files.FORMAT}"):
        make(parts, tiny_config, where, mesh)
    manifest = store.location(where, config_lib.zoo_fingerprint(tiny_config)) / files.MANIFEST
    manifest.write_text(json.dumps({"base.safetensors": 64 * "0"}))  # as it was before formats had numbers
    with pytest.raises(PdiffError, match="of format 1; this pdiff reads format"):
        make(parts, tiny_config, where, mesh)
