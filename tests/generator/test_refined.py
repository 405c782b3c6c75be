"""The refined zoo: what it is made of, which of it lies in a set, and what the prior is told of by it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.generator import generator as generator_lib
from pdiff.generator import refined
from pdiff.generator.generator import MEMBERS, RefinedZoo, null_condition
from pdiff.models.conditions import Mixture
from pdiff.system import files
from pdiff.tasks.grammar import Grammar
from pdiff.tasks.language import TaskSet
from pdiff.weights import stats
from tests.noise import noised


@pytest.fixture(scope="module")
def refine(tiny_start, tiny, tiny_zoo, mesh):
    """(config fields by part, family) -> the tiny generator, refined anew with the same mean."""

    def refine(family=None, **parts):
        config = tiny_start.config.copy_and_resolve_references()
        config.update(parts)
        made = dataclasses.replace(tiny_start, config=config, family=family or tiny_start.family)
        return refined.refine(made, tiny.mean_params, tiny_zoo["seen"], mesh)

    return refine


def by_hand(tiny, factors, description=0):
    """Coefficients of the mean's networks for those factors, told in one of the wordings."""
    texts = [tiny.family.describe(tuple(map(float, f)))[0][description] for f in factors]
    condition = tiny.condition([tiny.family.tasks[0]] * len(texts), texts, ("text",))
    return np.asarray(tiny.subspace.project(jax.jit(tiny.mean_tokens)(condition)))


def test_it_has_the_mean_s_network_for_all_that_can_be_described(tiny):
    zoo, grid = tiny.refined, tiny.family.grammar.grid(tiny.config.refined.networks)
    np.testing.assert_array_equal(zoo.factors, np.asarray(grid, np.float32))
    np.testing.assert_array_equal(zoo.means, zoo.coefficients)
    some = np.arange(0, len(grid), 20)
    wordings = range(len(tiny.family.tasks[0].descriptions))
    found = np.stack([by_hand(tiny, grid[some], w) for w in wordings])
    off = np.abs(found - zoo.coefficients[some]).max(-1)
    assert off.min(0).max() < 1e-3  # of one of the wordings each
    assert len(set(off.argmin(0))) > 1


def test_its_networks_lie_in_the_subspace_and_their_coefficients_have_unit_variance(tiny):
    seen = tiny.family.split("seen")
    z = np.asarray(jax.jit(tiny.mean_tokens)(tiny.condition(seen, given=("text",))))
    back = tiny.subspace.reconstruct(tiny.subspace.project(z))
    assert np.square(z - back).sum() < 0.15 * np.square(z - tiny.subspace.center).sum()
    assert np.square(tiny.refined.coefficients).mean() == pytest.approx(1, abs=0.1)
    fitted, held_out = (tiny.refined.coefficients[i :: refined.GROUP] for i in (0, refined.GROUP - 1))
    assert np.square(fitted).mean() == pytest.approx(np.square(held_out).mean(), rel=0.3)


def test_networks_go_there_and_back(tiny):
    x = jax.random.normal(jax.random.key(0), (5, *tiny.shape))
    networks = tiny.decode(x)
    assert jax.tree.structure(networks) == jax.tree.structure(tiny.target.abstract())
    np.testing.assert_allclose(tiny.encode(networks), x, atol=1e-3)


def test_it_may_be_the_zoo_itself(tiny, tiny_zoo, refine):
    seen = tiny_zoo["seen"]
    made = refine(refined={"of": "zoo"})
    zoo = made.refined
    np.testing.assert_array_equal(zoo.factors, tiny.family.factors([tiny.family.tasks[t] for t in seen.task]))
    z = jax.jit(made.normalize)(seen.params)
    np.testing.assert_allclose(zoo.coefficients, made.subspace.project(z), atol=1e-4)
    own = by_hand(made, zoo.factors)
    assert np.abs(zoo.means - zoo.coefficients).max() > 0.1
    texts = np.stack([by_hand(made, zoo.factors, w) for w in range(len(tiny.family.tasks[0].descriptions))])
    assert np.abs(zoo.means - texts).max(-1).min(0).max() < 1e-3 and own.shape == zoo.means.shape


def test_without_words_for_all_tasks_it_has_the_seen_ones_in_turn(tiny, refine):
    """Told by ids, or in a family that has no sentences for sets."""
    wordless = dataclasses.replace(tiny.family, grammar=None)
    seen = tiny.family.split("seen")
    for made in (refine(sample={"condition": ("id",)}), refine(wordless)):
        expected = np.tile(tiny.family.factors(seen), (tiny.config.refined.networks // len(seen), 1))
        np.testing.assert_array_equal(made.refined.factors, expected)
        coefficients = made.refined.coefficients.reshape(-1, len(seen), made.refined.coefficients.shape[-1])
        same = np.ptp(coefficients, 0).max() < 1e-3
        assert same == (made.config.sample.condition == ("id",))  # of an id there is one kind; words and numbers vary
        assert np.ptp(coefficients, 1).max() > 0.1


def test_blocks_of_any_size_give_the_same_zoo(tiny, refine, monkeypatch):
    monkeypatch.setattr(stats, "BLOCK_ELEMENTS", 50 * tiny.spec.num_params)
    again = refine()
    a, b = (np.asarray(m.subspace.reconstruct(m.refined.coefficients[::5])) for m in (tiny, again))
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_a_mean_that_knows_one_network_is_refused(tiny_start, tiny_zoo, mesh):
    params = jax.jit(tiny_start.init_mean)(jax.random.key(0))
    with pytest.raises(PdiffError, match="all networks are the same"):
        refined.refine(tiny_start, params, tiny_zoo["seen"], mesh)


@pytest.fixture
def numbered():
    x = np.arange(100, dtype=np.float32)[:, None]
    return RefinedZoo(-x, x, x)


def between(low, high):
    return TaskSet("", lambda factors: (factors[:, 0] >= low) & (factors[:, 0] <= high))


def test_rows_of_a_set_are_drawn_evenly(numbered):
    tasks, random = between(10, 14), np.random.default_rng(0)
    assert numbered.rows_of(tasks).tolist() == [10, 11, 12, 13, 14]
    drawn = numbered.draw(tasks, 12, random)
    counts = np.bincount(drawn, minlength=15)[10:]
    assert len(drawn) == 12 and sorted(counts) == [2, 2, 2, 3, 3]
    few = numbered.draw(between(0, 99), 20, random)
    assert len(set(few)) == 20 and few.tolist() != sorted(few)
    assert not len(numbered.draw(between(200, 300), 5, random))


def test_everything_is_some_of_all_evenly(numbered):
    everything = np.asarray(numbered.everything)
    assert everything.shape == (MEMBERS, 1)
    assert everything[0] == 0 and everything[-1] == 99 and set(np.diff(everything[:, 0])) == {3, 4}


def test_rows_of_training_sets_lie_in_them(tiny, monkeypatch):
    real, sets = Grammar.sentence, []

    def sentence(self, random, held_out=False):
        assert not held_out
        made = real(self, random)
        sets.append(made[1])
        return made

    monkeypatch.setattr(Grammar, "sentence", sentence)
    rows = refined.training_sets(tiny)
    found = [s for s in sets if len(tiny.refined.rows_of(s))]
    assert len(sets) == tiny.config.refined.sentences and rows.shape == (len(found), 2 * MEMBERS)
    for tasks, own in zip(found, rows, strict=True):
        allowed = tiny.refined.rows_of(tasks)
        assert set(own) <= set(allowed) and len(set(own)) == min(len(allowed), 2 * MEMBERS)
    np.testing.assert_array_equal(rows, refined.training_sets(tiny))  # each time the same
    config = tiny.config.copy_and_resolve_references()
    config.update({"refined": {"vague": 0.0}})
    assert len(refined.training_sets(dataclasses.replace(tiny, config=config))) == 0
    wordless = dataclasses.replace(tiny.family, grammar=None)
    assert refined.training_sets(dataclasses.replace(tiny, family=wordless)).shape == (0, 2 * MEMBERS)


def test_members_are_the_own_network_the_named_ones_or_some_of_all(tiny):
    tasks = tiny.family.tasks[:3]
    precise, members = tiny.condition(tasks), jax.jit(tiny.members)
    found = members(precise)
    own = tiny.subspace.project(jax.jit(tiny.mean_tokens)(precise))
    np.testing.assert_allclose(found, np.repeat(own[:, None], MEMBERS, 1), atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-2
    everything = np.repeat(tiny.refined.everything[None], 3, 0)
    np.testing.assert_array_equal(members(null_condition(precise)), everything)
    np.testing.assert_array_equal(members(tiny.condition(tasks, given=())), everything)
    given = np.asarray(tiny.refined.means)[np.arange(3 * MEMBERS).reshape(3, MEMBERS)]
    named = tiny.condition(tasks, members=given)
    np.testing.assert_array_equal(members(named), given)
    np.testing.assert_array_equal(members(null_condition(named)), everything)  # as guidance asks
    # Each example for itself, in one batch.
    keep = {n: c | {"keep": c["keep"] & np.array([True, False, True])} for n, c in precise.items()}
    keep["members"] = named["members"] | {"keep": np.array([False, False, True])}
    np.testing.assert_allclose(members(keep), jnp.stack([found[0], everything[1], given[2]]), atol=1e-4)


def test_members_of_a_mixture_are_the_network_of_the_mixed_context(tiny):
    a, b = (tiny.condition(tiny.family.tasks[i : i + 2]) for i in (0, 6))
    mixture = Mixture(a, b, jnp.array([0.3, 1.0]))
    found = jax.jit(tiny.members)(mixture)
    expected = tiny.subspace.project(jax.jit(tiny.mean_tokens)(mixture))
    np.testing.assert_allclose(found, np.repeat(expected[:, None], MEMBERS, 1), atol=1e-4)
    np.testing.assert_allclose(found[1], jax.jit(tiny.members)(b)[1], atol=1e-4)


def test_mean_networks_are_the_mean_s_tokens_as_trees(tiny, mesh, mesh4):
    condition = tiny.condition(tiny.family.tasks[:21], given=("text",))
    networks = [refined.mean_networks(tiny, condition, m) for m in (mesh, mesh4)]
    expected = jax.jit(lambda c: tiny.denormalize(tiny.mean_tokens(c)))(condition)
    for found in networks:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_a_kept_generator_comes_back(tiny, tmp_path):
    generator_lib.save(tiny, tmp_path)
    back = generator_lib.load(tmp_path)
    for name, value in tiny.arrays().items():
        jax.tree.map(np.testing.assert_array_equal, value, getattr(back, name))
        assert jax.tree.structure(value) == jax.tree.structure(getattr(back, name))
    assert back.shape == tiny.shape and back.config == tiny.config
    path = tmp_path / generator_lib.ARTIFACTS / "arrays.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(PdiffError, match="arrays.safetensors.*damaged.*rebuild it"):
        generator_lib.load(tmp_path)
    with pytest.raises(PdiffError, match="no generator here"):
        generator_lib.load(tmp_path / "elsewhere")


def test_a_generator_of_before_the_subspace_is_of_another_format(tiny, tmp_path):
    generator_lib.save(tiny, tmp_path)
    where = tmp_path / generator_lib.ARTIFACTS
    arrays = generator_lib.safetensors.numpy.load_file(where / "arrays.safetensors")
    kept = {k: v for k, v in arrays.items() if not k.startswith("subspace/")}
    files.write_atomic(where / "arrays.safetensors", generator_lib.safetensors.numpy.save(kept))
    files.write_manifest(where, generator_lib.KIND)
    with pytest.raises(files.OtherFormat, match="had no subspace; run that run again"):
        generator_lib.load(tmp_path)


def test_a_refined_generator_is_not_the_one_before(tiny_start, tiny):
    assert tiny_start.subspace is tiny_start.refined is tiny_start.mean_params is None
    assert set(tiny_start.condition(tiny.family.tasks[:2])) == {"id", "text"}
    noisier = dataclasses.replace(tiny, mean_params=noised(tiny.mean_params, 0.1))
    condition = tiny.condition(tiny.family.tasks[:2])
    assert np.abs(jax.jit(noisier.members)(condition) - jax.jit(tiny.members)(condition)).max() > 1e-2
