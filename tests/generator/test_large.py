"""Generators of large networks, on the tiny zoo: in coordinates they do what those in weights do."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff import rng
from pdiff.controls.hypernetwork import Hypernetwork
from pdiff.diffusion import losses
from pdiff.errors import PdiffError
from pdiff.generator import generator, large, published, refined
from pdiff.generator.adapt import Adapter, Recipe
from pdiff.generator.sample import Samplers
from pdiff.measures.accuracy import Scorer
from pdiff.tasks.support import of_images
from pdiff.training import stages
from pdiff.weights import codec
from pdiff.zoo import store
from tests.noise import noised


def changed(config, **fields):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
    return config


def make(start, zoo, workdir, **fields):
    config = changed(start.config, **{"weights__basis": "always"} | fields)
    return generator.make_generator(config, start.family, start.target, zoo, workdir)


@pytest.fixture(scope="module")
def begun(tiny_start, tiny_zoo, tmp_path_factory):
    """(generator before its mean is trained, its workdir)."""
    where = tmp_path_factory.mktemp("large")
    return make(tiny_start, tiny_zoo, where), where


@pytest.fixture(scope="module")
def whole(begun, tiny_zoo, mesh):
    """The same with a random mean and what follows from it, and random parameters of the prior."""
    params = noised(jax.jit(begun[0].init_mean)(jax.random.key(0)), 0.3)
    made = refined.refine(begun[0], params, tiny_zoo["seen"], mesh)
    return made, noised(made.init(jax.random.key(1)), 0.05)


def flat(made, networks):
    return codec.encode_stacked(made.spec, jax.tree.map(np.asarray, networks))


@pytest.mark.parametrize(
    ("functional", "width", "weights", "networks", "memory_mb", "expected"),
    [
        (0.0, 64, 10_560, 128, 4096, False),  # small
        (0.0, 64, 99_840, 128, 4096, True),  # nothing is lost
        (1.0, 64, 99_840, 128, 4096, False),
        (1.0, 64, 986_880, 128, 4096, False),  # a layer of half the zoo
        (1.0, 64, 986_880, 32, 4096, True),  # of twice the zoo
        (1.0, 64, 10_496_000, 128, 4096, True),  # of half the zoo, but 11 GB in training
        (1.0, 256, 24_754, 100, 4096, False),  # small, though of more than the zoo
        (1.0, 256, 111_362, 100, 4096, True),
        (1.0, 256, 111_362, 480, 4096, False),
    ],
)
def test_where_coordinates_are_used(tiny_config, functional, width, weights, networks, memory_mb, expected):
    own = dict(mean__functional_weight=functional, mean__width=width, zoo__memory_mb=float(memory_mb))
    config = changed(tiny_config, **own)
    assert large.suits(config, weights, networks) == expected
    assert large.suits(changed(config, weights__basis="always"), weights, networks)
    assert not large.suits(changed(config, weights__basis="never"), weights, networks)


def test_the_zoo_s_networks_come_back(begun, tiny_zoo):
    made, seen = begun[0], tiny_zoo["seen"]
    assert made.mean.shape == (1, made.coordinates) and made.coordinates == len(seen) - 1
    z = np.asarray(made.normalize(seen.params))
    np.testing.assert_allclose(z[:, 0], made.stored.seen, atol=1e-3)
    np.testing.assert_allclose(flat(made, made.denormalize(z)), flat(made, seen.params), atol=1e-4)


def test_a_zoo_on_disk_gives_the_same(begun, tiny_start, tiny_zoo, tmp_path):
    store.write(tmp_path, "abc", tiny_zoo)
    made = make(tiny_start, store.read(tmp_path, "abc", 0.001), tmp_path / "w")
    np.testing.assert_allclose(np.abs(made.stored.seen), np.abs(begun[0].stored.seen), rtol=1e-3, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), made.stats, begun[0].stats)


def test_a_basis_is_kept_and_computed_again_where_it_is_damaged_or_another(begun, tiny_start, tiny_zoo, said):
    made, where = begun
    file = where / large.FOLDER / "components.safetensors"
    before = os.stat(file)
    make(tiny_start, tiny_zoo, where)
    assert os.stat(file).st_mtime_ns == before.st_mtime_ns
    whole, middle = file.read_bytes(), before.st_size // 2
    file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    make(tiny_start, tiny_zoo, where)
    assert "components.safetensors" in said() and file.read_bytes() == whole
    other = make(tiny_start, tiny_zoo, where, weights__basis_dtype="bfloat16")
    assert other.stored.nbytes == made.stored.nbytes // 2
    make(tiny_start, tiny_zoo, where)
    assert file.read_bytes() == whole


@pytest.mark.parametrize("weights", [(0.0, 1.0), (2.0, 0.5)])
def test_the_mean_s_loss_by_hand(begun, tiny_zoo, mesh, monkeypatch, weights):
    """A few networks at a time or all of them: the same."""
    functional, zoo = weights
    config = changed(begun[0].config, mean__functional_weight=functional, mean__zoo_weight=zoo, mean__batch_size=16)
    made = dataclasses.replace(begun[0], config=config)
    stage = stages.mean(made, tiny_zoo["seen"], "zoo", mesh)
    batch, constants = jax.tree.map(jnp.asarray, (next(stage.batches(start=0, stop=1)), stage.constants))
    params, keys = noised(jax.jit(stage.init)(jax.random.key(0)), 0.05), jax.random.split(jax.random.key(5), 16)
    loss, parts = jax.jit(stage.loss)(params, batch, constants, keys)
    gradients = jax.jit(jax.grad(stage.loss, has_aux=True))(params, batch, constants, keys)[0]
    asked, original = [], losses.functional_loss

    def kept(networks, *rest):
        asked.append(len(jax.tree.leaves(networks)[0]))
        return original(networks, *rest)

    if functional:
        assert constants["generator"]["basis"] is not None
        monkeypatch.setattr(stages, "DECODED", 5 * made.spec.num_params)
        monkeypatch.setattr(stages.losses, "functional_loss", kept)
        again = jax.jit(jax.grad(stage.loss, has_aux=True))(params, batch, constants, keys)[0]
        assert set(asked) == {4}  # the most of 5 that divide 16
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradients, again)
        assert parts["functional_loss"] > 0 and parts["base_distance"] > 0
    else:
        assert constants["generator"]["basis"] is None and constants["generator"]["base"] is None
    for task, z in zip(np.asarray(batch["task"]), np.asarray(batch["params"]), strict=True):
        assert (made.stored.seen[tiny_zoo["seen"].task == task] == z).all(1).any()  # a network of its task
    total = functional * parts.get("functional_loss", 0) + zoo * parts["zoo_loss"]
    total += functional * config.mean.base_penalty * parts.get("base_distance", 0)
    assert loss == pytest.approx(float(total), rel=1e-4)


def test_on_disk_or_in_memory_draws_are_the_same(whole, mesh, monkeypatch):
    """Also a few at a time, and scores of them."""
    made, params = whole
    monkeypatch.setattr("pdiff.generator.sample.DECODED", 3 * made.spec.num_params)
    on_disk = dataclasses.replace(made, basis=None)
    assert on_disk.streams and not made.streams
    tasks = made.family.tasks[:7]
    condition, key = made.condition(tasks, given=("text",)), rng.stream(0, "test")
    draws = [Samplers(m, mesh).networks(params, "ddim", condition, key) for m in (made, on_disk)]
    np.testing.assert_allclose(*(flat(made, d) for d in draws), atol=1e-5)
    ids = np.array([t.id for t in tasks], np.int32)
    score = Scorer(made, "test", mesh).batch
    scores = [Samplers(m, mesh).scores(params, "ddim", condition, key, score, ids) for m in (made, on_disk)]
    np.testing.assert_allclose(*scores, atol=0.01)
    means = [refined.mean_networks(m, condition, mesh) for m in (made, on_disk)]
    np.testing.assert_allclose(*(flat(made, m) for m in means), atol=1e-5)
    control = Hypernetwork(on_disk, mesh).sample(tasks, 1, np.random.default_rng(0))
    np.testing.assert_allclose(control[:, 0], flat(made, means[0]), atol=1e-5)


def test_the_prior_learns_from_the_zoo_itself(begun, tiny_zoo, mesh):
    made = dataclasses.replace(begun[0], config=changed(begun[0].config, refined__of="zoo"))
    params = noised(jax.jit(made.init_mean)(jax.random.key(0)), 0.3)
    made = refined.refine(made, params, tiny_zoo["seen"], mesh)
    again = made.subspace.project(made.stored.seen[:, None])
    np.testing.assert_allclose(made.refined.coefficients, again, atol=1e-4)


def test_adapting_goes_through_the_basis(whole, tiny_zoo, mesh):
    made, _ = whole
    images = made.family.data["train"]
    support = of_images(images.x[:6], images.y[:6], made.family.num_classes, made.family.features)
    one = jax.tree.map(lambda w: w[:1], tiny_zoo["seen"].params)
    tuned = Adapter(made, mesh).finetune(one, support, Recipe(space="subspace", steps=2))
    z = np.asarray(made.normalize(tuned))
    assert np.abs(np.asarray(made.subspace.reconstruct(made.subspace.project(z))) - z).max() < 1e-2
    with pytest.raises(PdiffError, match="zoo.memory_mb: .* stays on disk"):
        on_disk = dataclasses.replace(made, basis=None)
        Adapter(on_disk, mesh).finetune(one, support, Recipe(space="subspace", steps=2))


def test_saved_and_published_it_is_the_same(whole, begun, tmp_path):
    made, params = whole
    generator.save(made, begun[1])
    published.write(made, params, {}, tmp_path / "small")
    z = np.asarray(made.refined.means[:3]).reshape(3, *made.shape)
    for where in (begun[1], tmp_path / "small"):
        loaded = generator.load(where)
        assert loaded.coordinates == made.coordinates and not loaded.streams
        np.testing.assert_array_equal(flat(made, loaded.decode(z)), flat(made, made.decode(z)))
        jax.tree.map(np.testing.assert_array_equal, loaded.stats, made.stats)
    os.rename(tmp_path / "small" / large.FOLDER, tmp_path / "elsewhere")
    with pytest.raises(PdiffError, match="basis: missing; delete that folder"):
        generator.load(tmp_path / "small")


def test_what_does_not_fit_is_told_early(tiny_start, tiny_zoo, tmp_path):
    with pytest.raises(PdiffError, match=r"zoo.memory_mb: got 0.01; allowed: at least 1, which the basis"):
        make(tiny_start, tiny_zoo, tmp_path, zoo__memory_mb=0.01, mean__functional_weight=1.0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(PdiffError, match="workdir: missing"):
        make(tiny_start, tiny_zoo, None)


def test_shapes_alone_are_those_of_the_real_one(begun):
    made = begun[0]
    shapes = generator.abstract(made.config, made.family, made.target)
    assert shapes.coordinates == made.coordinates
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, shapes.basis, made.basis)
    assert jax.tree.all(same)
