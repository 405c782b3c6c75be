"""The training step and loop of both stages: on any number of devices, stopped or not, the same numbers."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.train_step import networks as random_networks
from configs import smoke
from pdiff import rng
from pdiff.compile import aot
from pdiff.errors import PdiffError
from pdiff.generator import generator as generator_lib
from pdiff.generator import published, refined
from pdiff.report.validation import accuracy_by_task
from pdiff.system import checkpoint, dist, files, stopping
from pdiff.system.checkpoint import Checkpoints
from pdiff.targets import get_target
from pdiff.tasks import get_family
from pdiff.training import data, metrics, stages
from pdiff.training import train as train_lib
from pdiff.training.state import clip_by_global_norm, make_optimizer, update_ema
from pdiff.weights import stats

BOTH = (stages.MEAN, stages.PRIOR)


def run_steps(stage, mesh, count):
    state, step = train_lib.fresh_state(stage, mesh), train_lib.make_step(stage, mesh)
    constants = dist.replicate(stage.constants, mesh)
    for batch in stage.batches(start=0, stop=count):
        state, values = step(state, dist.shard(batch, mesh, dist.BATCH), constants)
    return jax.device_get((state, values)), step


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", BOTH)
def test_four_devices_equal_one_and_a_step_is_compiled_once(name, make_stage, mesh, mesh4):
    stage = make_stage(name, mesh)
    (one, values1), step = run_steps(stage, mesh, 3)
    (four, values4), _ = run_steps(stage, mesh4, 3)
    assert step._cache_size() == 1
    assert values1["loss"] == pytest.approx(values4["loss"], rel=1e-4)
    assert values1["grad_norm"] == pytest.approx(values4["grad_norm"], rel=1e-3)
    # Adam divides by the gradient's size, so a last-bit difference can move a weight by a step of the learning rate.
    assert_close(one.params, four.params, atol=3 * stage.settings.learning_rate)
    assert (
        np.mean([np.abs(a - b).mean() for a, b in zip(*map(jax.tree.leaves, (one.params, four.params)), strict=True)])
        < 1e-5
    )


@pytest.mark.parametrize("name", BOTH)
def test_the_gradients_are_the_mean_of_the_devices_own(name, make_stage, mesh4):
    stage = make_stage(name, mesh4, mean__zoo_weight=0.5)
    state = train_lib.fresh_state(stage, mesh4)
    params = jax.device_get(state.params)  # the step donates what it is given
    batch = next(stage.batches(start=0, stop=1))
    step, constants = train_lib.make_step(stage, mesh4), dist.replicate(stage.constants, mesh4)
    ours, values = step(state, dist.shard(batch, mesh4, dist.BATCH), constants)

    def of_one_device(params, part, constants):
        keys = rng.per_example(rng.stream(stage.config.seed, f"{name}/step"), part["index"])
        return jax.lax.pmean(jax.grad(stage.loss, has_aux=True)(params, part, constants, keys), "data")

    split = jax.tree.map(lambda a: np.asarray(a).reshape(4, -1, *a.shape[1:]), batch)
    mapped = jax.pmap(of_one_device, axis_name="data", in_axes=(None, 0, None), devices=jax.devices()[:4])
    grads, metrics = jax.tree.map(lambda a: np.asarray(a)[0], mapped(params, split, stage.constants))
    clipped = stage.settings.grad_clip / max(float(optax.global_norm(grads)), stage.settings.grad_clip)
    moments = ours.opt_state[1][0].mu  # 0.1 of the clipped gradient after one step of Adam
    assert any(np.asarray(m).any() for m in jax.tree.leaves(moments))
    for mu, g in zip(jax.tree.leaves(moments), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(mu, 0.1 * clipped * g, rtol=1e-4, atol=1e-7)
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx({k: float(values[k]) for k in metrics}, rel=1e-5)


def test_the_loop_compiles_once_and_fetches_for_the_log_alone(make_stage, mesh, tmp_path, monkeypatch):
    how = dict(train__steps=6, train__log_every=3, train__validate_every=6, train__checkpoint_every=6)
    stage = make_stage(stages.PRIOR, mesh, **how)
    make, get, made, fetched, calls = train_lib.make_step, jax.device_get, [], [], []

    def make_guarded(*args):
        made.append(make(*args))

        def step(*args):
            calls.append(len(fetched))
            with jax.transfer_guard("disallow"):  # all arguments lie on the device, and nothing comes back by itself
                return made[0](*args)

        return step

    def device_get(x):
        fetched.extend(x if isinstance(x, list) else [])
        return get(x)

    monkeypatch.setattr(train_lib, "make_step", make_guarded)
    monkeypatch.setattr(jax, "device_get", device_get)
    train_lib.train(stage, tmp_path, mesh, stopping.StopSignal())
    assert made[0]._cache_size() == 1
    assert calls == [0, 0, 0, 3, 3, 3]  # steps 1 to 3 were called before the metrics of any was fetched
    assert len(fetched) == 6


def test_flops_of_a_step_are_those_of_the_transformer(mesh):
    """By XLA's own count, with the layers so wide that what else there is to do is little."""
    config = smoke.get_config()
    with config.unlocked():
        config.model.update(dict(width=256, depth=2, num_heads=2))
        config.condition.use, config.sample.condition = ("id",), ("id",)
        config.train.update(dict(microbatches=1, batch_size=64))
        config.sample.samplers = ("posterior_mean",)  # XLA counts a loop's body once
    made = aot.shapes(config)
    for name in ("train", "sample"):
        ready = aot.program(made, mesh, name)
        counted = ready.step.lower(*ready.arguments).compile().cost_analysis()["flops"]
        assert 0.95 < counted / aot.analytic_flops(made, name) < 1.1


def losses_on_the_first_batch(stage, mesh, steps):
    state, step = train_lib.fresh_state(stage, mesh), train_lib.make_step(stage, mesh)
    constants, found = dist.replicate(stage.constants, mesh), []
    batch = dist.shard(next(stage.batches(start=0, stop=1)), mesh, dist.BATCH)
    for _ in range(steps):
        state, values = step(state, batch, constants)
        found.append(values["loss"])
    return np.asarray(jax.device_get(found))


def test_the_mean_learns_a_batch_by_heart(make_stage, tiny_start, mesh):
    steps = 60
    stage = make_stage(
        stages.MEAN, mesh, mean__steps=steps, mean__learning_rate=1e-2, mean__functional_weight=0.0,
        mean__zoo_weight=1.0, condition__drop_id=0.0,
    )  # fmt: skip
    batch = next(stage.batches(start=0, stop=1))
    losses = losses_on_the_first_batch(stage, mesh, steps)
    # What stays is the spread between seeds of one task, which no condition tells apart.
    x0 = np.asarray(tiny_start.normalize(batch["params"]))
    means = np.stack([x0[batch["task"] == t].mean(0) for t in batch["task"]])
    varying = np.asarray(stats.varying(tiny_start.stats)).sum()
    floor = ((x0 - means) ** 2).sum((1, 2)).mean() / varying
    start = (x0**2).sum((1, 2)).mean() / varying
    assert losses[0] == pytest.approx(start, rel=0.01)  # the output is zero at first
    assert losses[-10:].mean() < floor + 0.25 * (start - floor)


def test_the_prior_learns_to_answer_with_the_one_network_that_it_is_told_of(make_stage, tiny, mesh):
    """At sigma_max nothing else tells what is behind the noise."""
    steps = 80
    stage = make_stage(
        stages.PRIOR, mesh, train__steps=steps, train__learning_rate=1e-2, refined__vague=0.0,
        condition__drop_all=0.0, diffusion__at_sigma_max=1.0,
    )  # fmt: skip
    losses = losses_on_the_first_batch(stage, mesh, steps)
    assert losses[0] == pytest.approx(np.square(tiny.refined.coefficients).mean(), rel=0.5)  # the output is zero
    assert losses[-10:].mean() < 0.1 * losses[0]


@pytest.mark.parametrize("name", BOTH)
def test_data_is_a_function_of_seed_and_step(name, make_stage, mesh):
    stage = make_stage(name, mesh)
    whole = list(stage.batches(start=0, stop=6))
    assert_equal(whole[3:], list(stage.batches(start=3, stop=6)))
    some = np.array([1, 5, 6])
    parts = stage.batches(start=0, stop=6, rows=some, place=lambda batch: batch | {"placed": np.ones(3)})
    assert_equal([jax.tree.map(lambda x: x[some], b) | {"placed": np.ones(3)} for b in whole], list(parts))
    if name == stages.MEAN:
        assert len({int(t) for b in whole for t in b["task"]}) > 4


def test_each_network_comes_once_before_any_comes_twice(tiny, tiny_zoo):
    networks = tiny_zoo["seen"]
    size = 8
    made = data.training_batches(networks, 3, seed=5, batch_size=size, start=0, stop=len(networks) // size)
    pairs = np.concatenate([b["params"]["params"]["Dense_0"]["bias"] for b in made])
    everything = networks.params["params"]["Dense_0"]["bias"]
    assert_equal(
        np.sort(pairs, 0),
        np.sort(everything[: len(pairs)], 0) if len(pairs) < len(everything) else np.sort(everything, 0),
    )


def test_tasks_without_networks_come_as_often_and_are_known_by_it(tiny_zoo):
    networks, practice = tiny_zoo["seen"], np.arange(1000, 1005)
    every = len(networks) + len(practice)
    batches = list(data.training_batches(networks, 3, seed=5, batch_size=every, start=0, stop=1, practice=practice))
    task, fitted = batches[0]["task"], batches[0]["fitted"]
    assert sorted(task[~fitted].tolist()) == practice.tolist()
    assert sorted(task[fitted].tolist()) == sorted(np.asarray(networks.task).tolist())


def train(stage, workdir, mesh, stop=None):
    workdir.mkdir(exist_ok=True)
    return train_lib.train(stage, workdir, mesh, stop or stopping.StopSignal(), accuracy_by_task)


@pytest.fixture(scope="module")
def straight_run(make_stage, mesh, tmp_path_factory):
    """Parameters by stage, and the workdir, of trainings that nothing happened to."""
    workdir = tmp_path_factory.mktemp("straight") / "w"
    return {name: train(make_stage(name, mesh), workdir, mesh) for name in BOTH}, workdir


@pytest.fixture
def prior(make_stage, mesh):
    return make_stage(stages.PRIOR, mesh)


@pytest.fixture
def straight(straight_run, tmp_path):
    """The prior's parameters; in `tmp_path` is a copy of the workdir, to be damaged."""
    shutil.copytree(straight_run[1], tmp_path, dirs_exist_ok=True)
    return straight_run[0][stages.PRIOR]


def test_killed_and_resumed_is_bit_identical(make_stage, mesh, straight_run, tmp_path):
    """Each stage in turn; the metrics of the second go on where those of the first end."""
    straight, workdir = straight_run
    real, stop, last = train_lib.MetricsWriter.write, None, 0

    def write(self, step, values):  # a signal arrives in the middle of the stage
        nonlocal last
        last = step
        if step - stage.before >= 4:
            stop.signum = 15
        real(self, step, values)

    for name in BOTH:
        stage, stop = make_stage(name, mesh), stopping.StopSignal()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_lib.MetricsWriter, "write", write)
            with pytest.raises(stopping.Interrupted, match=f"steps of the {name}.*run the same command again") as error:
                train(stage, tmp_path / "stopped", mesh, stop)
        assert error.value.exit_code == 143
        assert last < stage.before + stage.settings.steps
        assert_equal(straight[name], train(stage, tmp_path / "stopped", mesh))

    def states(workdir):
        return [{k: v for k, v in e.items() if k != "steps_per_s"} for e in metrics.read(workdir)]

    assert states(workdir) == states(tmp_path / "stopped")
    assert sorted({e["step"] for e in metrics.read(workdir)}) == list(range(2, 17, 2))


def test_the_boards_show_metrics_and_images(straight_run):
    shown = b"".join(p.read_bytes() for p in (straight_run[1] / "tensorboard").iterdir())
    assert all(name in shown for name in (b"steps_per_s", b"validation/mean", b"validation/posterior_mean"))
    assert b"\x89PNG" in shown


def test_weights_and_biases_gets_the_same(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    writer = metrics.MetricsWriter(tmp_path, 0, "pdiff-tests", {"train": {"steps": 2}})
    writer.write(1, {"loss": 2.5})
    writer.write(2, {"loss": 1.5})
    writer.write(3, {"loss": 0.5})  # which closes the step before
    summary = dict(wandb.run.summary)
    writer.close()
    assert summary["loss"] == 1.5 and wandb.run is None
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert [e["loss"] for e in metrics.read(tmp_path)] == [2.5, 1.5, 0.5]


def test_a_finished_training_returns_what_it_kept(prior, mesh, straight, tmp_path):
    assert_equal(straight, train(prior, tmp_path, mesh))


def test_divergence_stops_the_run_and_says_what_to_try(make_stage, tiny_start, tiny_zoo, mesh, tmp_path):
    generator = dataclasses.replace(tiny_start, config=make_stage(stages.MEAN, mesh, mean__zoo_weight=1.0).config)
    networks = dataclasses.replace(
        tiny_zoo["seen"], params=jax.tree.map(lambda a: a * np.float32(1e25), tiny_zoo["seen"].params)
    )
    stage = stages.mean(generator, networks, "zoo", mesh)
    wanted = "mean diverged at step 1: .*not finite are the gradients of .*kernel.*of step none.*config.mean.learning_r"
    with pytest.raises(PdiffError, match=wanted):
        train(stage, tmp_path, mesh)
    assert not Checkpoints(tmp_path / stages.MEAN, 2).steps()


def test_the_step_and_the_tensors_at_fault_are_named():
    sound = {"loss": 1.0, "grad_norm": 2.0, train_lib.NORMS: np.array([1.0, 2.0])}
    assert train_lib.divergence(sound, ["a", "b"]) == ""
    odd = sound | {"grad_norm": np.float32("nan"), train_lib.NORMS: np.array([1.0, np.inf])}
    assert train_lib.divergence(odd, ["a", "b"]) == "grad_norm is nan; not finite are the gradients of b of 2 tensors"
    large = sound | {"loss": 1e5, train_lib.NORMS: np.array([7.0, 2.0])}
    assert train_lib.divergence(large, ["a", "b"]) == ("loss is 1e+05; the largest gradient, of norm 7, is that of a")


def damage(step_folder):
    victim = max(step_folder.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    return victim


def test_a_damaged_checkpoint_gives_way_to_the_one_before_which_ends_the_same(
    tiny, prior, mesh, straight, tmp_path, said
):
    where = tmp_path / "checkpoints"
    victim = damage(where / "8")
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), straight)
    before = sorted(where.rglob("*"))
    assert Checkpoints(where, 2).restore_part("ema", like)[0] == 4  # who only reads goes back, too
    assert sorted(where.rglob("*")) == before
    with pytest.raises(PdiffError, match="training is at step 4 of 8"):
        published.restore_params(tiny, tmp_path, final=True)
    assert_equal(straight, train(prior, tmp_path, mesh))
    assert f"{victim}: damaged" in said() and "going back to the checkpoint of step 4" in said()
    assert Checkpoints(where, 2).steps() == [4, 8] and (where / "damaged").is_dir()


def test_a_damaged_older_checkpoint_is_set_aside(prior, mesh, straight, tmp_path, said):
    victim = damage(tmp_path / "checkpoints" / "4")
    assert_equal(straight, train(prior, tmp_path, mesh))
    assert f"{victim}: damaged" in said() and "the checkpoint of step 8 is newer, and intact" in said()
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"8", "damaged"}


def test_without_an_intact_checkpoint_nothing_is_trained(prior, mesh, straight, tmp_path):
    damage(tmp_path / "checkpoints" / "4")
    damage(tmp_path / "checkpoints" / "8")
    with pytest.raises(PdiffError, match="8/.*damaged.*no other checkpoint is intact; delete .*checkpoints to train"):
        train(prior, tmp_path, mesh)


def test_a_checkpoint_of_another_format_is_refused_by_its_number(prior, mesh, straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(files, "FORMAT", 77)
        for folder in (tmp_path / "checkpoints").iterdir():
            files.write_manifest(folder, checkpoint.KIND)
    with pytest.raises(PdiffError, match=f"8/manifest.json: of format 77; this pdiff reads format {files.FORMAT}"):
        train(prior, tmp_path, mesh)


def test_who_only_reads_changes_nothing(straight, tmp_path):
    """As sampling from a run that is being trained must not remove the checkpoint that is being written."""
    where = tmp_path / "checkpoints"
    (where / "8" / files.MANIFEST).unlink()
    (where / "12.orbax-checkpoint-tmp").mkdir()
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), straight)
    assert Checkpoints(where, 2).restore_part("ema", like)[0] == 4
    assert {p.name for p in where.iterdir()} == {"4", "8", "12.orbax-checkpoint-tmp"}


def test_a_checkpoint_without_its_manifest_is_not_used(prior, mesh, straight, tmp_path):
    (tmp_path / "checkpoints" / "8" / "manifest.json").unlink()
    assert_equal(straight, train(prior, tmp_path, mesh))


def test_other_data_is_refused_on_resume(tiny_start, tiny, tiny_zoo, mesh, straight, tmp_path):
    fewer = stages.mean(tiny_start, tiny_zoo["seen"][:-1], "zoo", mesh)
    moved = dataclasses.replace(tiny.refined, coefficients=tiny.refined.coefficients + np.float32(1e-3))
    for stage in (fewer, stages.prior(dataclasses.replace(tiny, refined=moved), "zoo", mesh)):
        with pytest.raises(PdiffError, match="other data"):
            train(stage, tmp_path, mesh)


def test_ema_has_warm_up():
    ema, params = {"w": jnp.zeros(())}, {"w": jnp.ones(())}
    after_first = update_ema(ema, params, jnp.int32(0), 0.999)
    assert float(after_first["w"]) == pytest.approx(1 - 1 / 10)
    late = update_ema(ema, params, jnp.int32(10**7), 0.999)
    assert float(late["w"]) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("most", [0.1, 5.0, 1e3])
def test_clipping_is_optax_s(most):
    gradients = {"a": jnp.array([3.0, -4.0]), "b": jnp.full((2, 2), 2.5)}
    ours, theirs = (
        made.update(gradients, made.init(gradients))[0]
        for made in (clip_by_global_norm(most), optax.clip_by_global_norm(most))
    )
    assert_close(ours, theirs, rtol=1e-6)
    nothing = jax.tree.map(jnp.zeros_like, gradients)
    assert_equal(clip_by_global_norm(most).update(nothing, optax.EmptyState())[0], nothing)


def test_optimizer_warms_up_and_decays_matrices_only(tiny_config):
    config = tiny_config.train.copy_and_resolve_references()
    config.update(dict(warmup_steps=5, steps=10, weight_decay=0.5, learning_rate=1e-2))
    optimizer = make_optimizer(config)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state, zero = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(6):
        with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
            updates, state = optimizer.update(zero, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["bias"], 1)
    decayed = np.prod([1 - 0.5 * 1e-2 * min(n / 5, 1) for n in range(6)])
    np.testing.assert_allclose(params["kernel"], decayed, rtol=1e-4)


def test_streams_differ_by_name_and_step():
    keys = [rng.stream(0, "a", 0), rng.stream(0, "a", 1), rng.stream(0, "b", 0), rng.stream(1, "a", 0)]
    bits = {tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in keys}
    assert len(bits) == 4
    assert (
        jax.random.key_data(rng.stream(0, "a", 1)) == jax.random.key_data(jax.jit(lambda s: rng.stream(0, "a", s))(1))
    ).all()


def test_a_million_generated_parameters_train_without_special_code(mesh, tmp_path):
    """Long tokens keep their number small, and a narrow mean keeps that small."""
    config = smoke.get_config()
    with config.unlocked():
        config.tasks.update(dict(num_seen=3, num_interp=0, num_unseen=0, num_validation=1, num_gaps=0))
        config.tasks.update(dict(validation_gaps=(30.0,), eval_images=20))
        config.condition.use, config.sample.condition = ("factors",), ("factors",)
        config.target.widths = (1000, 960)
        config.weights.token_dim = 4096
        config.mean.update(dict(width=4, steps=2, batch_size=2, functional_images=8))
        config.refined.update(dict(networks=10, sentences=5))
        config.model.update(dict(width=32, depth=1))
        config.train.update(dict(steps=2, batch_size=2, warmup_steps=1, validate_every=2, checkpoint_every=2))
        config.sample.update(dict(samplers=("posterior_mean",), batch_size=5))
    family = get_family(config.tasks)
    target = get_target(config.target, family.image_shape, family.num_classes)
    networks = {"base": random_networks(target, 1), "seen": random_networks(target, 3, 3)}
    made = generator_lib.make_generator(config, family, target, networks)
    assert made.spec.num_params == 1_035_570 and made.spec.num_tokens < 300
    mean = train(stages.mean(made, networks["seen"], "zoo", mesh), tmp_path, mesh)
    assert mean["weights"]["kernel"].any()
    made = refined.refine(made, mean, networks["seen"], mesh)
    params = train(stages.prior(made, "zoo", mesh), tmp_path, mesh)
    assert params["last"]["kernel"].any()
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((mean, params)))
