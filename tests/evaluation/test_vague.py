"""What is measured of networks for vague descriptions, on networks whose angle is known by construction."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff.errors import PdiffError
from pdiff.evaluation import vague
from pdiff.evaluation.bench import Bench
from pdiff.evaluation.vague import MARGIN, Grid, _bins, _spread_over
from pdiff.generator import conditioning
from pdiff.generator.generator import MEMBERS, RefinedZoo
from pdiff.tasks.base import Family, Task
from pdiff.tasks.families.rotation import rotation_matrix
from pdiff.tasks.grammar import Grammar
from pdiff.tasks.language import TaskSet
from pdiff.tasks.languages.angle_reading import LANGUAGE
from pdiff.zoo.networks import Networks
from tests.annotations import unchecked

ARC = "digits rotated by between 60 and 120 degrees"


def family_of(periods, factors, units=()):
    """A family that has nothing but factors, with `factors` as the grid."""
    rows = np.array(factors, float)
    names = tuple("abc"[: rows.shape[1]])
    tasks = (Task("t", 0, "seen", tuple(rows[0]), ("words",), ()),)
    grammar = Grammar((), frozenset(), lambda count: rows, LANGUAGE, "")
    return Family("made", names, periods, 2, (1,), {}, tasks, None, lambda own, x: x, None, factor_units=units,
                  vary=lambda f: np.float32(0), grammar=grammar)  # fmt: skip


def grid_of(mesh, *args, **more):
    with unchecked():  # of a generator that has nothing else
        return Grid(SimpleNamespace(family=family_of(*args, **more)), mesh)


# --- bins -----------------------------------------------------------------------------------------


def test_neighbours_share_a_bin_but_never_across_a_gap():
    assert _bins(np.arange(6)).tolist() == [0, 0, 1, 1, 2, 2]
    assert _bins(np.array([4])).tolist() == [0]
    rows = np.array([0, 1, 2, 3, 10, 11, 20])
    assert _bins(rows).tolist() == [0, 0, 1, 1, 2, 2, 3]
    for rows in (np.arange(180), np.r_[5:40, 90:180], np.r_[0:3, 100:101, 150:180]):
        made = _bins(rows)
        assert made[0] == 0 and set(np.diff(made)) <= {0, 1} and made.max() < vague.MOST_BINS
        gaps = np.flatnonzero(np.diff(rows) > 1)
        assert (np.diff(made)[gaps] == 1).all()


def test_a_network_in_each_bin_is_no_variation_and_all_in_one_is_nearly_whole():
    rows = np.arange(20, 40)
    bins = _bins(rows)
    even = _spread_over(rows, rows, bins)
    assert even["bins"] == even["bins_hit"] == 10 and even["total_variation"] == pytest.approx(0)
    assert even["share"] == [0.1] * 10
    one = _spread_over(np.full(50, 33), rows, bins)
    assert one["bins_hit"] == 1 and one["total_variation"] == pytest.approx(0.9)
    half = _spread_over(np.repeat(rows[:10], 3), rows, bins)
    assert half["bins_hit"] == 5 and half["total_variation"] == pytest.approx(0.5)


def test_a_network_outside_of_the_set_counts_for_the_nearest_in_it():
    rows = np.r_[10:14, 30:34]
    found = _spread_over(np.array([0, 0, 50, 17]), rows, _bins(rows))
    assert found["share"] == [0.5, 0.25, 0.0, 0.25]


# --- which task suits a network --------------------------------------------------------------------


def test_on_a_circle_the_middle_of_the_best_is_found_across_zero(mesh):
    angles = np.arange(0, 360, 10.0)
    grid = grid_of(mesh, (360.0,), angles[:, None])
    table = np.full((3, 36), 0.3)
    table[0, [35, 0, 1]] = 0.9  # 350, 0, 10
    table[1, [33, 34, 35, 0, 1]] = 0.9  # 330 … 10
    table[2, [17, 18, 19]] = (0.9, 0.9 + MARGIN / 2, 0.9)
    assert angles[grid.suited(table)].tolist() == [0, 350, 180]
    # Of rows alone, numbers are of these rows; what is best elsewhere counts for nothing.
    rows = np.array([0, 1, 2, 17, 18, 19])
    assert angles[rows[grid.suited(table[:, rows], rows)]].tolist() == [0, 0, 180]


def test_a_task_that_is_no_more_than_nearly_as_good_weighs_less(mesh):
    grid = grid_of(mesh, (0.0,), np.arange(10.0)[:, None])
    table = np.zeros((2, 10))
    table[0, 2:5], table[0, 8] = 0.8, 0.8 - MARGIN  # not within the margin
    table[1, 2], table[1, 6] = 0.8, 0.8 - MARGIN / 4
    assert grid.suited(table).tolist() == [3, 4]  # (2 · 1 + 6 · 3/4) / 1.75 = 3.7
    assert grid.suited(np.full((1, 10), 0.5)).tolist() in ([4], [5])


def test_with_several_factors_it_is_the_best_one(mesh):
    grid = grid_of(mesh, (0.0, 0.0), [(0, 0), (0, 1), (1, 0), (1, 1)])
    table = np.array([[0.5, 0.51, 0.5, 0.5], [0.9, 0.1, 0.1, 0.91]])
    assert grid.suited(table).tolist() == [1, 3]
    assert grid.suited(table[:, [0, 2]], np.array([0, 2])).tolist() == [0, 0]


def test_a_sets_rows_are_those_nearest_to_the_refined_zoos(mesh):
    grid = grid_of(mesh, (360.0,), np.arange(0, 360, 10.0)[:, None])
    factors = np.array([[3.0], [12.0], [13.0], [358.0], [200.0], [57.0]], np.float32)
    zoo = RefinedZoo(np.zeros((6, 2)), np.zeros((6, 2)), factors)
    near = TaskSet("near 0", lambda f: (f[:, 0] < 50) | (f[:, 0] > 350))
    assert grid.rows_of(near, zoo).tolist() == [0, 1]
    assert grid.rows_of(TaskSet("all", lambda f: f[:, 0] >= 0), zoo).tolist() == [0, 1, 6, 20]
    assert grid.rows_of(TaskSet("none", lambda f: f[:, 0] < 0), zoo).tolist() == []


# --- networks that are good for an angle -----------------------------------------------------------


@pytest.fixture(scope="module")
def upright(tiny):
    """A network that reads upright digits, by a few hundred steps of plain gradient descent."""
    images, network = tiny.family.data["train"], jax.tree.map(lambda w: w[0], tiny_part(tiny))

    def loss(network):
        logp = jax.nn.log_softmax(tiny.apply(network, jnp.asarray(images.x)), -1)
        return -logp[np.arange(len(images.y)), images.y].mean()

    step = jax.jit(lambda n: jax.tree.map(lambda w, g: w - 0.5 * g, n, jax.grad(loss)(n)))
    for _ in range(300):
        network = step(network)
    return jax.tree.map(np.asarray, network)


def tiny_part(tiny):
    return jax.tree.map(lambda w: np.asarray(w)[None], tiny.base)


def turned(upright, angles):
    """For each angle the network that reads digits turned by it: its images are turned back first."""
    back = np.stack([rotation_matrix(-a) for a in angles])
    first = upright["params"]["Dense_0"]["kernel"]
    made = jax.tree.map(lambda w: np.repeat(w[None], len(angles), 0), upright)
    made["params"]["Dense_0"]["kernel"] = (back @ first).astype(np.float32)
    return made


@pytest.fixture(scope="module")
def grid(tiny, mesh):
    return Grid(tiny, mesh)


def test_tables_are_accuracies_on_the_grids_tasks(grid, tiny, upright, mesh):
    angles = [0.0, 90.0, 216.0]
    train, test = grid.tables(turned(upright, angles), ("train", "test"))
    assert train.shape == test.shape == (3, len(grid.factors))
    images = tiny.family.data["test"]
    rows = np.linspace(0, len(images.y) - 1, min(vague.IMAGES["test"], len(images.y))).round().astype(int)
    for i, angle in enumerate(angles):
        network = jax.tree.map(lambda w, i=i: w[i], turned(upright, angles))
        for row in (0, 7, 100):
            x = images.x[rows] @ rotation_matrix(grid.factors[row, 0])
            right = (np.asarray(tiny.apply(network, jnp.asarray(x))).argmax(-1) == images.y[rows]).mean()
            assert test[i, row] == pytest.approx(right, abs=0.006)
        best = grid.factors[train[i].argmax(), 0]
        assert min(abs(best - angle), 360 - abs(best - angle)) < 12 and train[i].max() > 0.75


def test_what_networks_are_good_for_is_named_with_its_accuracy(grid, tiny, upright, mesh):
    angles = [90.0, 62.0, 300.0]
    found = grid.suited_of(turned(upright, angles), tiny.family.grammar.read(ARC).tasks)
    for one, angle in zip(found[:2], angles, strict=False):
        assert abs(one.factors[0] - angle) < 12 and f"{one.factors[0]:g} degrees" in one.description
        assert one.accuracy > 0.75
    assert 60 <= found[2].factors[0] <= 120 and found[2].accuracy < 0.5  # the best of the set, and bad


class Drawing(Bench):
    """A bench of the tiny generator whose sampler gives networks of angles that are named."""

    def __init__(self, generator, mesh, networks, **evaluation):
        config = generator.config.copy_and_resolve_references()
        with config.unlocked():
            config.eval.update(dict(vague_samples=48, vague_prompts=(ARC,)) | evaluation)
        self.generator, self.mesh, self.config, self.params = generator, mesh, config, None
        self.samplers, self._networks, self.asked = self, networks, []

    def networks(self, params, sampler, condition, key):
        self.asked.append((sampler, condition))
        return self._networks(self.config.eval.vague_samples)


DRAWN = {
    "evenly": lambda count: np.linspace(60, 120, count),
    "always one": lambda count: np.full(count, 90.0),
    "elsewhere": lambda count: np.linspace(240, 300, count),
}


@pytest.fixture(scope="module")
def measured(tiny, tiny_zoo, upright, mesh):
    """One of DRAWN -> what is said of the generator that draws networks of these angles for ARC."""

    @functools.cache
    def measure(name):
        bench = Drawing(tiny, mesh, lambda count: turned(upright, DRAWN[name](count)))
        (found,) = vague.vague(bench, "heun", tiny_zoo)
        return found

    return measure


def test_a_generator_that_draws_from_all_of_the_set_varies_little(measured):
    found = measured("evenly")
    assert found["prompt"] == ARC and found["said"] == "any angle from 60 to 120 degrees (60 of 360)"
    assert found["tasks"] == 31 and found["samples"] == 48  # of the grid, 2 degrees apart
    own = found["networks"]["generated"]
    # Networks of angles near 90 degrees are sharper, and best at 90.
    assert own["total_variation"] < 0.65 and own["bins_hit"] > 0.5 * own["bins"] and own["inside"] > 0.9
    assert own["at_suited"]["mean"] > 0.75 and own["best"]["mean"] > 0.75
    assert own["precision"] == 1 and own["coverage"] > 0.9  # fine-tuning was short, and is easily equalled


def test_a_generator_that_always_draws_one_network_varies_as_much_as_can_be(measured):
    own = measured("always one")["networks"]["generated"]
    assert own["bins_hit"] == 1 and own["total_variation"] == pytest.approx(1 - 1 / own["bins"], abs=0.03)
    assert own["inside"] == 1


def test_a_generator_that_draws_outside_of_the_set_is_not_inside(measured):
    own = measured("elsewhere")["networks"]["generated"]
    assert own["inside"] < 0.05 and own["at_suited"]["mean"] > 0.75  # good networks, of other tasks
    assert own["precision"] < 0.5


def test_beside_what_is_drawn_stand_the_mean_a_drawn_task_and_the_zoo(measured):
    found = measured("evenly")
    assert set(found["networks"]) == {"generated", "task_of_set", "hypernetwork", "zoo"}
    one = found["networks"]["hypernetwork"]  # one network for one description
    assert one["bins_hit"] == 1 and one["best"]["min"] == pytest.approx(one["best"]["max"])


def test_all_samples_of_a_prompt_are_drawn_under_the_same_members_of_its_set(tiny, tiny_zoo, upright, mesh):
    bench = Drawing(tiny, mesh, lambda count: turned(upright, np.full(count, 90.0)), vague_samples=4)
    vague.vague(bench, "heun", tiny_zoo)
    ((sampler, condition),) = bench.asked
    members = condition["members"]["inputs"]
    assert sampler == "heun" and members.shape == (4, MEMBERS, tiny.refined.means.shape[1])
    assert condition["members"]["keep"].all() and not condition["text"]["keep"].any()
    assert (members == members[0]).all()
    angles = tiny.refined.factors[rows_of(tiny, members[0]), 0]
    assert (angles >= 60).all() and (angles <= 120).all() and len(set(angles)) == 31 > MEMBERS - 2


def rows_of(tiny, members):
    """Which rows of the refined zoo some members are."""
    gap = np.abs(np.asarray(tiny.refined.means)[None] - members[:, None]).max(-1)
    assert (gap.min(1) == 0).all()
    return gap.argmin(1)


def test_each_task_of_a_set_is_a_member_as_often_as_any_other(tiny):
    random, tasks = np.random.default_rng(0), tiny.family.grammar.read(ARC).tasks
    counts = np.bincount(tiny.refined.draw(tasks, 310, random), minlength=len(tiny.refined.factors))
    assert set(counts[tiny.refined.rows_of(tasks)]) == {10} and counts.sum() == 310
    narrow = tiny.family.grammar.read("digits rotated by between 10.5 and 11.5 degrees").tasks
    assert len(tiny.refined.rows_of(narrow)) == 0 == len(tiny.refined.draw(narrow, 5, random))
    assert conditioning.set_condition(tiny, narrow, 4, random) is None


def test_prompts_are_those_that_are_named_or_one_of_each_kind(tiny, mesh):
    assert vague.prompts(Drawing(tiny, mesh, None)) == [ARC]
    every = vague.prompts(Drawing(tiny, mesh, None, vague_prompts=()))
    grammar = tiny.family.grammar
    assert len(every) == len(grammar.constructions) and all(grammar.read(p).tasks is not None for p in every)
    with pytest.raises(PdiffError, match="eval.vague_prompts: got 'digits rotated by 75 degrees'; allowed: vague ones"):
        vague.prompts(Drawing(tiny, mesh, None, vague_prompts=(ARC, "digits rotated by 75 degrees")))


def test_a_prompt_whose_set_the_refined_zoo_has_nothing_of_is_left_out(tiny, tiny_zoo, mesh):
    bench = Drawing(tiny, mesh, None, vague_prompts=("digits rotated by between 10.5 and 11.5 degrees",))
    assert vague.vague(bench, "heun", tiny_zoo) == [] == bench.asked


def test_fine_tuning_at_a_place_is_that_of_the_nearest_task(tiny):
    tasks = [tiny.family.split("seen")[i].id for i in (0, 0, 3)]
    whole, column = np.zeros(3, np.int32), np.zeros(3, np.float32)
    made = Networks(np.array(tasks), whole, whole, column, np.array([0.5, 0.7, 0.9], np.float32), {})
    near, far = (tiny.family.tasks[tasks[i]].factors[0] for i in (0, 2))
    found = vague._finetuned(tiny.family, {"seen": made}, np.array([[near + 1], [far - 1], [far + 359]]))
    np.testing.assert_allclose(found, [0.6, 0.9, 0.9], rtol=1e-5)
