"""Identification and likeness of score, on generators whose density is known in closed form."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff import density
from pdiff.bench import Bench
from pdiff.generator import Generator
from pdiff.weights import stats

SPREAD = 0.5


@dataclasses.dataclass(frozen=True)
class Known(Generator):
    """A generator whose denoiser is a known function of (z, sigma, angle): the angle is read off the description."""

    known: Callable | None = None

    def context(self, params, condition):
        return condition["text"]["inputs"]["values"].max(1)

    def denoiser(self, params, context):
        return lambda z, sigma: jnp.where(stats.varying(self.stats), self.known(z, sigma, context), 0)


def known(tiny, function):
    config = tiny.config.copy_and_resolve_references()
    with config.unlocked():
        config.eval.likelihood_networks = 9
        config.eval.likelihood_steps = 60
        config.eval.score_levels = (0.3, 5.0)
    return Known(**(vars(tiny) | {"config": config.lock()}), known=function)


def shrunk(z, sigma, mean, spread):
    """The posterior mean of N(mean, spread^2)."""
    share = (spread**2 / (spread**2 + sigma**2))[:, None, None]
    return mean + share * (z - mean)


@pytest.fixture(scope="module")
def mean(tiny):
    """Angles in degrees to the mean of their tasks' normalised weights: a circle."""
    on = np.asarray(stats.varying(tiny.stats))
    u, v = 0.3 * np.random.default_rng(0).standard_normal((2, *on.shape)).astype(np.float32) * on

    def at(angle):
        turn = jnp.deg2rad(jnp.asarray(angle))[:, None, None]
        return jnp.cos(turn) * u + jnp.sin(turn) * v

    return at


@pytest.fixture(scope="module")
def drawn(tiny, tiny_zoo, mean):
    """The tiny zoo with weights from N(mean of the task's angle, SPREAD^2)."""
    random = np.random.default_rng(1)

    def again(networks):
        angle = np.array([tiny.family.tasks[t].factors[0] for t in networks.task], np.float32)
        x0 = np.asarray(mean(angle))
        noise = SPREAD * random.standard_normal(x0.shape, np.float32)
        params = jax.tree.map(np.asarray, tiny.decode(x0 + noise))
        return dataclasses.replace(networks, params=params)

    return {s: again(n) if s in ("seen", *density.HELD_OUT) else n for s, n in tiny_zoo.items()}


@pytest.fixture(scope="module")
def bench(tiny, mean, mesh):
    made = known(tiny, lambda z, sigma, angle: shrunk(z, sigma, mean(angle), SPREAD))
    return Bench(made, {}, mesh)


@pytest.fixture(scope="module")
def told(bench, drawn):
    return density.identification(bench, drawn)


def test_differences_are_those_of_the_known_log_densities(bench, drawn, told, mean):
    by_name, made = {t.name: t for t in bench.generator.family.tasks}, bench.generator
    count = int(stats.varying(made.stats).sum())
    weights = {
        t: made.encode(jax.tree.map(lambda p, i=i: p[i : i + 1], n.params))
        for n in density._held_out(drawn, 9).values()
        for i, t in enumerate(n.task)
        if (n.task == t).sum() == 1
    }
    pairs = [p for p in told["pairs"] if by_name[p["task"]].id in weights]
    assert len(pairs) > 10

    low, high = made.path.sigma_min, made.path.sigma_max
    growth = np.sqrt((SPREAD**2 + high**2) / (SPREAD**2 + low**2))

    def exact(pair, of, by_the_ode):
        task = by_name[pair["task"]]
        center = mean(np.array([by_name[pair[of]].factors[0]], np.float32))
        off = weights[task.id] - center
        # The ODE ends where the prior takes its centre to be 0, which at sigma_max = 80 shows.
        squares = ((center + growth * off) / high) ** 2 if by_the_ode else off**2 / SPREAD**2
        return -0.5 * float(squares.sum()) / count

    def difference(by_the_ode):
        return np.array([exact(p, "task", by_the_ode) - exact(p, "against", by_the_ode) for p in pairs])

    assert np.abs(difference(True)).max() > 0.5
    np.testing.assert_allclose([p["likelihood"] for p in pairs], difference(True), rtol=0.005, atol=0.003)
    np.testing.assert_allclose([p["elbo"] for p in pairs], difference(False), rtol=0.05, atol=0.01)


def test_the_right_task_is_ahead_of_far_ones(told):
    assert set(told["splits"]) == {"validation", "interp", "unseen"}
    far = told["by_rank"][-1]
    assert far["rank"] == 12 and far["distance"] > 120
    assert all(far["share"][name]["mean"] == 1 for name in density.ESTIMATES)
    means = [r["difference"]["likelihood"]["mean"] for r in told["by_rank"]]
    distances = [r["distance"] for r in told["by_rank"]]
    assert np.argsort(distances).tolist() == list(range(len(distances))) and means[-1] == max(means)


def test_shares_count_the_pairs(told):
    for split, entry in told["splits"].items():
        own = [p for p in told["pairs"] if p["split"] == split]
        ahead = [p["likelihood"] > 0 for p in own if p["kind"] == "opposite"]
        assert entry["share"]["likelihood"]["mean"] == np.mean(ahead)
        assert entry["top_1"]["likelihood"]["mean"] <= np.mean(ahead)
        tasks = dict.fromkeys(p["task"] for p in own)
        if len(tasks) == entry["top_1"]["likelihood"]["n"]:  # a network for each task
            first = [all(p["likelihood"] >= 0 for p in own if p["task"] == t) for t in tasks]
            assert entry["top_1"]["likelihood"]["mean"] == np.mean(first)


def test_densities_are_those_of_the_gaussian_and_of_raw_weights(bench, told):
    made = bench.generator
    scale = np.asarray(made.stats.scale)[np.asarray(stats.varying(made.stats))]
    expected = -0.5 * np.log(2 * np.pi * np.e * (SPREAD**2 + made.path.sigma_min**2))  # minus the entropy
    for entry in told["splits"].values():
        assert entry["log_density"]["mean"] == pytest.approx(expected, abs=0.05)
        shift = entry["log_density"]["mean"] - entry["log_density_raw"]["mean"]
        assert shift == pytest.approx(np.log(scale).mean(), rel=1e-4)


def test_nothing_is_told_by_ids_alone(bench, drawn):
    config = bench.config.copy_and_resolve_references()
    with config.unlocked():
        config.sample.condition = ("id",)
    made = dataclasses.replace(bench.generator, config=config)
    assert density.identification(Bench(made, {}, bench.mesh), drawn) == {}
    assert density.identification(bench, {"seen": drawn["seen"]}) == {}


def test_questions_without_factors_have_no_distance(tiny):
    family = dataclasses.replace(tiny.family, factor_names=())
    task = family.split("unseen")[0]
    asked = density._questions(family, 0, "unseen", task)
    assert [q.about.split for q in asked[2:]] == ["seen"] * density.WRONG_SEEN
    assert [q.about for q in asked[:1]] == [task] and asked[1].about is family.split("unseen")[2]
    assert "distance" not in density._pair(family, asked[2])


def empirical(zoo):
    def denoise(z, sigma, angle):
        flat = z.reshape(len(z), -1)
        squared = ((flat[:, None] - zoo.reshape(1, len(zoo), -1)) ** 2).sum(-1)
        return jnp.tensordot(jax.nn.softmax(-0.5 * squared / sigma[:, None] ** 2, 1), zoo, 1)

    return denoise


def test_a_copying_generator_has_the_zoos_score(tiny, drawn, mesh):
    zoo = np.asarray(tiny.encode(drawn["seen"].params))
    rows = density.score_likeness(Bench(known(tiny, empirical(zoo)), {}, mesh), drawn)
    assert [r["sigma"] for r in rows] == [0.3, 5.0]
    for row in rows:
        assert set(row["cases"]) == {"seen", "held_out", "seen_unconditional", "held_out_unconditional"}
        for case in ("seen_unconditional", "held_out_unconditional"):
            measured = row["cases"][case]
            assert measured["empirical"]["relative_error"]["max"] < 2e-3
            assert measured["empirical"]["cosine"]["min"] > 0.9999
    assert rows[0]["cases"]["seen"]["largest_weight"]["min"] == 1
    # At low noise what a zoo network has around it looks nothing like a Gaussian.
    assert rows[0]["cases"]["seen_unconditional"]["gaussian"]["relative_error"]["min"] > 0.5


def test_a_gaussian_generator_has_the_gaussians_score(tiny, drawn, mesh):
    zoo = np.asarray(tiny.encode(drawn["seen"].params))
    tokens = np.asarray(Bench(tiny, {}, mesh).encode(drawn["seen"].params))
    spread = stats.spread_within(tiny.stats, tokens, 0 * drawn["seen"].task)
    made = known(tiny, lambda z, sigma, angle: shrunk(z, sigma, zoo.mean(0), spread))
    low = density.score_likeness(Bench(made, {}, mesh), drawn)[0]["cases"]
    for case in ("seen_unconditional", "held_out_unconditional"):
        assert low[case]["gaussian"]["relative_error"]["max"] < 1e-3
        assert low[case]["empirical"]["relative_error"]["min"] > 0.3


def test_each_network_is_compared_with_the_nearest_seen_tasks(bench, drawn):
    case, family = density._cases(bench, drawn)["held_out"], bench.generator.family
    assert sorted(np.concatenate([own for own, _ in case.references])) == list(range(len(case.networks)))
    for own, rows in case.references:
        (reference,) = set(drawn["seen"].task[rows])
        assert len(rows) == (drawn["seen"].task == reference).sum()
        for task in (family.tasks[t] for t in case.networks.task[own]):
            gaps = {t.id: abs((t.factors[0] - task.factors[0] + 180) % 360 - 180) for t in family.split("seen")}
            assert gaps[reference] == min(gaps.values())
