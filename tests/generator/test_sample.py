"""Networks are drawn, decoded and scored batch by batch: one program, no transfer but of what is asked for."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdiff import rng
from pdiff.diffusion import samplers
from pdiff.evaluation.bench import Bench
from pdiff.generator.sample import Samplers, make_sampler
from pdiff.models.conditions import Mixture
from pdiff.system import dist
from tests.noise import noised

BATCH = 8


@pytest.fixture(scope="module")
def small(tiny):
    """The tiny generator with small batches."""
    config = tiny.config.copy_and_resolve_references()
    with config.unlocked():
        config.sample.batch_size = BATCH
    return dataclasses.replace(tiny, config=config)


@pytest.fixture(scope="module")
def params(small):
    """Fresh ones, moved off the zeros that would make all samples alike."""
    return noised(small.init(jax.random.key(0)), 0.05)


@pytest.fixture(scope="module")
def bench(small, params, mesh):
    return Bench(small, params, mesh)


def ask(generator, count):
    tasks = generator.family.split("seen")
    tasks = [tasks[i % len(tasks)] for i in range(count)]
    return generator.condition(tasks, given=generator.config.sample.condition), np.array([t.id for t in tasks])


@pytest.fixture
def compilations():
    """Names of what is compiled meanwhile."""
    found = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_one_program_serves_requests_of_any_size(small, params, mesh, compilations):
    drawn, key = Samplers(small, mesh), rng.stream(0, "test")
    drawn.networks(params, "ddim", ask(small, 3)[0], key)
    assert compilations  # the listener hears
    compilations.clear()
    for count in (1, BATCH, 2 * BATCH + 3):
        made = drawn.networks(params, "ddim", ask(small, count)[0], key)
        assert {len(x) for x in jax.tree.leaves(made)} == {count}
        assert [len(jax.tree.leaves(b)[0]) for b in drawn.batches(params, "ddim", ask(small, count)[0], key)] == [
            min(BATCH, count - start) for start in range(0, count, BATCH)
        ]
    assert not compilations


def test_streamed_scores_are_those_of_the_networks(bench, compilations):
    tasks = bench.generator.family.split("seen")[:5]
    streamed = bench.scores("ddim", tasks, "test", 3)
    kept = bench.accuracy(bench.generate("ddim", tasks, "test", 3), tasks)
    np.testing.assert_allclose(streamed.values, kept.values, rtol=1e-6)
    assert streamed.values.std() > 0
    compilations.clear()
    bench.scores("ddim", tasks, "another", 7)
    assert not compilations


@pytest.mark.parametrize("devices", [1, 4])
def test_networks_do_not_depend_on_the_batch_nor_on_what_is_drawn_beside_them(small, params, mesh, mesh4, devices):
    drawn, key = Samplers(small, mesh if devices == 1 else mesh4), rng.stream(0, "test")
    condition = ask(small, 11)[0]
    made = drawn.networks(params, "ddim", condition, key)
    fewer = drawn.networks(params, "ddim", jax.tree.map(lambda x: x[:9], condition), key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:9], b, rtol=1e-5, atol=1e-6), made, fewer)


@pytest.mark.parametrize("scale, mixed", [(1.0, True), (2.0, False)])
def test_the_step_draws_coefficients_under_the_condition_s_members_and_decodes_them(small, params, mesh, scale, mixed):
    """By the denoiser itself, with guidance and without, for a condition and for a mixture of two."""
    config = small.config.copy_and_resolve_references()
    with config.unlocked():
        config.sample.guidance = scale
    made, condition, index = dataclasses.replace(small, config=config), ask(small, BATCH)[0], np.arange(BATCH)
    if mixed:
        other = jax.tree.map(lambda x: x[3:], ask(small, BATCH + 3)[0])
        condition = Mixture(condition, other, jnp.linspace(0, 1, BATCH))
    arguments = (params, made.arrays() | {"base": None}, condition, jax.random.key(0), index)

    @jax.jit
    def expected(condition):
        keys = rng.per_example(jax.random.key(0), index)
        noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), made.shape))(keys)
        sigma = jnp.full(BATCH, made.config.diffusion.sigma_max)
        told, everything = made.members(condition), np.repeat(made.refined.everything[None], BATCH, 0)
        x0, null = (made.denoiser(params, m)(sigma[0] * noise, sigma) for m in (told, everything))
        return made.decode(null + scale * (x0 - null))

    networks = make_sampler(made, "posterior_mean", mesh)(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), networks, expected(condition))


def test_what_is_transferred_is_what_is_asked_for(bench, monkeypatch):
    """Uploads are by `device_put`, downloads one `device_get` of each finished batch: accuracies, not networks."""
    drawn, key = bench.samplers, rng.stream(0, "test")
    condition, task = ask(bench.generator, 3 * BATCH)
    arguments = (bench.params, "ddim", condition, key, bench.score["test"].batch, task)
    drawn.scores(*arguments)
    fetched, device_get = [], jax.device_get

    def counting(tree):
        fetched.append(sum(x.nbytes for x in jax.tree.leaves(tree)))
        return device_get(tree)

    monkeypatch.setattr(jax, "device_get", counting)
    with jax.transfer_guard("disallow"):
        drawn.scores(*arguments)
    assert fetched == [4 * BATCH] * 3


def test_live_memory_does_not_grow_with_the_samples(bench):
    drawn, key = bench.samplers, rng.stream(0, "test")
    size = 4 * bench.generator.spec.num_params
    placed = sum(x.nbytes for x in jax.tree.leaves(bench.params))  # each call places the parameters anew

    def peak(count):
        condition, task = ask(bench.generator, count)
        gc.collect()
        before, live = sum(x.nbytes for x in jax.live_arrays()), []

        def score(networks, rows):
            live.append(sum(x.nbytes for x in jax.live_arrays()) - before - placed)
            return bench.score["test"].batch(networks, rows)

        made = list(drawn.batches(bench.params, "ddim", condition, key, rows=task, make=score))
        assert len(np.concatenate(made)) == count
        return max(live)

    few, many = peak(4 * BATCH), peak(16 * BATCH)
    assert BATCH * size < few < 4 * BATCH * size
    assert many <= few * 1.05


@pytest.mark.parametrize(
    "name, calls",
    [("heun", 2 * 4 - 1), ("ddim", 4), ("dpmpp_2m", 4), ("posterior_mean", 1), ("euler_maruyama", 4), ("ancestral", 4)],
)
def test_calls_of_the_denoiser(small, name, calls):
    """Counted where they run, with four noise levels."""
    counted, levels = [], samplers.noise_levels(small.path, 4, 7.0)

    def denoise(z, sigma):
        jax.debug.callback(lambda s: counted.append(float(s)), sigma[0])
        return 0.5 * z

    noise, keys = jax.numpy.ones((2, 3, 4)), rng.per_example(jax.random.key(0), np.arange(2))
    jax.block_until_ready(samplers.get_sampler(name)(denoise, small.path, noise, levels, keys))
    jax.effects_barrier()
    assert len(counted) == calls


def test_a_chunk_is_started_before_the_last_is_fetched():
    order, x = [], np.arange(10)

    def start(rows):
        order.append(f"start {rows[0]}")
        return 2 * rows

    for made in dist.chunks(start, x, len(x), 4):
        order.append(f"have {made[0] // 2}")
    assert order == ["start 0", "start 4", "have 0", "start 8", "have 4", "have 8"]


def test_whole_chunks_are_views_and_repeated_rows_take_no_memory():
    x, seen = np.broadcast_to(np.float32(3), (10, 1000)), []
    made = dist.map_chunks(lambda rows: seen.append(rows) or rows[:, 0], x, 10, 4)
    np.testing.assert_array_equal(made, np.full(10, 3, np.float32))
    assert all(np.shares_memory(rows, x) for rows in seen[:2])
    assert [len(rows) for rows in seen] == [4, 4, 4]
