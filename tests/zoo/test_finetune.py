"""Fine-tuning many networks at once: what seeds decide, what is kept, and that it equals one at a time."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pdiff import rng
from pdiff.compile import hlo
from pdiff.errors import PdiffError
from pdiff.targets import get_target
from pdiff.tasks import base as tasks_base
from pdiff.tasks import get_family
from pdiff.weights import codec
from pdiff.weights.spec import make_spec
from pdiff.zoo import build, finetune
from tests.annotations import unchecked
from tests.targets.make import accuracy, fit


@pytest.fixture(scope="module")
def setting(tiny_config):
    family = get_family(tiny_config.tasks)
    target = get_target(tiny_config.target, family.image_shape, family.num_classes)
    base = target.init(jax.random.key(0))
    x = jnp.stack([family.render(v, family.data["train"].x) for v in family.variables[:2]])
    return target, base, x, family.data["train"].y


def tune(setting, config, x, seeds):
    target, base, _, y = setting
    return fit(target, base, x, jnp.tile(y, (len(x), 1)), seeds, config.zoo)


def test_seeds_decide_everything_but_the_task(setting, tiny_config):
    x = setting[2]
    nets = tune(setting, tiny_config, jnp.stack([x[0], x[0], x[0]]), [3, 3, 4])
    kernel = np.asarray(nets["params"]["Dense_0"]["kernel"])[:, -1]
    np.testing.assert_array_equal(kernel[0], kernel[1])
    assert np.abs(kernel[0] - kernel[2]).max() > 1e-3


def test_all_at_once_equals_one_at_a_time(setting, tiny_config):
    x = setting[2]
    both = tune(setting, tiny_config, x, [0, 1])
    for i in range(2):
        alone = tune(setting, tiny_config, x[i : i + 1], [i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b[0], atol=1e-5), both, alone)


def test_it_learns(setting, tiny_config):
    target, base, x, y = setting
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.zoo.steps = 300
    nets = tune(setting, config, x[:1], [0])
    before = accuracy(base, target, x[0], y)
    after = accuracy(jax.tree.map(lambda a: a[0, -1], nets), target, x[0], y)
    assert before < 0.4 and after > 0.85


def test_late_checkpoints_are_those_of_shorter_runs(setting):
    """With a constant rate the network kept k steps before the end is the end of a run k steps shorter."""
    target, base, x, y = setting
    optimizer = finetune.make_optimizer(1e-3, 0.01, 30, "constant")

    def kept(steps, keep_last, keep_every):
        return finetune.train(
            target, optimizer, base, finetune.minibatches(x[0], y, 16), rng.stream(0, "test"),
            steps=steps, keep_last=keep_last, keep_every=keep_every,
        )  # fmt: skip

    long = kept(30, 3, 7)
    for i, steps in enumerate([16, 23, 30]):
        short = kept(steps, 1, 1)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b[0], atol=1e-6), long, short)


def test_only_generated_leaves_are_trained(setting, tiny_config):
    """The head that is returned is the one that a run of plain JAX over the head alone would find."""
    target, base, x, y = setting
    zoo = tiny_config.zoo.copy_and_resolve_references()
    with zoo.unlocked():
        zoo.steps = 1
    head = dataclasses.replace(target, generate=".*Dense_1.*")
    nets = fit(head, base, x[:1], y[None], [0], zoo)
    assert list(nets) == ["params"] and list(nets["params"]) == ["Dense_1"]

    rows = jax.random.fold_in(rng.per_example(rng.stream(0, "zoo/batches"), jnp.arange(1))[0], 0)
    drawn = finetune.minibatches(x[0], y, zoo.batch_size)
    batch, labels = drawn.take(drawn.rows(rows))

    def loss(dense):
        logits = target.apply({"params": base["params"] | {"Dense_1": dense}}, batch)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

    start = base["params"]["Dense_1"]
    optimizer = finetune.make_optimizer(zoo.learning_rate, zoo.weight_decay, 1, zoo.schedule)
    with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
        step, _ = optimizer.update(jax.grad(loss)(start), optimizer.init(start), start)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a[0, 0], b + c, atol=1e-6), nets["params"]["Dense_1"], start, step
    )


def test_rendering_ahead_or_in_each_step_is_the_same(tiny_config, mesh, monkeypatch):
    family = get_family(tiny_config.tasks)
    target = get_target(tiny_config.target, family.image_shape, family.num_classes)
    base = target.init(jax.random.key(0))
    job = (np.array([0, 0, 5, 5], np.int32), np.array([0, 1, 0, 1], np.int32))
    constants, made = build.chunk_constants(family, base), []
    for room in (0, tasks_base.RENDER_BYTES):
        monkeypatch.setattr(tasks_base, "RENDER_BYTES", room)
        made.append(build.chunk_step(family, target, tiny_config, mesh)(job, constants))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *made)


def test_cross_entropy_and_its_gradient_are_optaxs():
    logits = 5 * jax.random.normal(jax.random.key(0), (7, 4))
    y = jnp.array([0, 1, 2, 3, 3, 0, 1])

    def theirs(z):
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()

    np.testing.assert_allclose(finetune.cross_entropy(logits, y), theirs(logits), rtol=1e-6)
    ours = jax.grad(finetune.cross_entropy)(logits, y)
    np.testing.assert_allclose(ours, jax.grad(theirs)(logits), atol=1e-7)


def test_networks_of_consecutive_jobs_find_the_images_of_their_own_task(tiny_config, mesh):
    """A chunk that begins and ends amid the seeds of a task, against each network in a chunk of its own."""
    family = get_family(tiny_config.tasks)
    target = get_target(tiny_config.target, family.image_shape, family.num_classes)
    assert (tiny_config.zoo.seeds_per_task, tiny_config.zoo.reference_seeds) == (2, 2)
    task, seed = np.array([3, 4, 4, 5, 5, 6], np.int32), np.array([1, 0, 1, 0, 1, 0], np.int32)
    constants = build.chunk_constants(family, target.init(jax.random.key(0)))
    step = build.chunk_step(family, target, tiny_config, mesh)
    together = step((task, seed), constants)
    for i in (0, 2, 5):
        alone = step((task[i : i + 1], seed[i : i + 1]), constants)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b[0], atol=1e-4), together, alone)


def test_the_step_does_the_matrix_products_that_it_must(tiny_config, mesh):
    """Of an MLP, within a tenth: forwards, and backwards to all but the images; then rendering and both accuracies."""
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.zoo.steps = 300
    family = get_family(config.tasks)
    target = get_target(config.target, family.image_shape, family.num_classes)
    numbers = jax.ShapeDtypeStruct((6,), jnp.int32)
    arguments = ((numbers, numbers), build.chunk_constants(family, target.init(jax.random.key(0))))
    program = build.chunk_step(family, target, config, mesh).lower(*arguments).compile().as_text()
    widths = (64, *config.target.widths, 10)
    layers = [2 * a * b for a, b in itertools.pairwise(widths)]  # of one image
    steps = config.zoo.steps * config.zoo.batch_size * (3 * sum(layers) - layers[0])
    images = {k: len(d.y) for k, d in family.data.items()}
    rendering = 2 * 64 * 64 * (4 / 6 * images["train"] + images["validation"] + images["test"])  # 4 tasks in 6 jobs
    scoring = sum(layers) * (images["validation"] + images["test"])
    assert hlo.analyse(program).matmul_flops / 6 == pytest.approx(steps + rendering + scoring, rel=0.1)


def test_the_size_of_a_chunk_is_the_machines_unless_it_is_given(tiny_config, mesh4):
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        assert build.chunk_size(config, mesh4) == config.zoo.chunk_size == 16
        config.zoo.chunk_size = 0
        assert build.chunk_size(config, mesh4) == 4 * build.NETWORKS_A_CORE
        config.zoo.chunk_size = 6
    with pytest.raises(PdiffError, match="zoo.chunk_size: got 6, .* multiples of 4"):
        build.chunk_size(config, mesh4)


def test_a_regex_without_a_leaf_is_refused(setting, tiny_config):
    target, base, x, y = setting
    with pytest.raises(PdiffError, match="matches no leaf"):
        fit(dataclasses.replace(target, generate="head"), base, x, jnp.tile(y, (2, 1)), [0, 1], tiny_config.zoo)


@pytest.fixture(scope="module")
def resnet(tiny_config):
    """A resnet, its config, a pretrained base, and the images of one task."""
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.target.update(dict(name="resnet", widths=(8, 16)))
        config.zoo.update(dict(steps=100, pretrain_steps=200))
    family = get_family(config.tasks)
    target = get_target(config.target, family.image_shape, family.num_classes)
    images = {k: (family.render(family.variables[3], d.x), d.y) for k, d in family.data.items()}
    return target, config.zoo, finetune.pretrain(target, *family.pretraining_images("train"), config.zoo, 0), images


def tune_one(target, zoo, base, images):
    x, y = images["train"]
    part = jax.tree.map(lambda a: np.asarray(a[0, -1]), fit(target, base, x[None], jnp.asarray(y)[None], [0], zoo))
    return jax.tree.map(np.asarray, codec.complete(make_spec(base, generate=target.generate), part, base))


def test_running_statistics_are_trained_so_that_evaluation_is_right(resnet):
    """Those of another network would not do: fresh or the base's, with the same parameters, lose accuracy."""
    target, zoo, base, images = resnet
    net = tune_one(target, zoo, base, images)
    score = {
        name: float(accuracy(net | {"batch_stats": running}, target, *images["test"]))
        for name, running in (
            ("own", net["batch_stats"]),
            ("base", base["batch_stats"]),
            ("fresh", target.init(jax.random.key(0))["batch_stats"]),
        )
    }
    assert score["own"] > 0.9, score
    assert score["own"] > accuracy(base, target, *images["test"]) + 0.1
    assert score["own"] > score["base"] and score["own"] > score["fresh"] + 0.2, score
    batch = (target.apply_train(net, images["test"][0])[0].argmax(-1) == images["test"][1]).mean()
    assert abs(score["own"] - batch) < 0.05


def test_running_statistics_that_are_not_generated_stay_the_bases_in_training_and_in_use(resnet):
    target, zoo, base, images = resnet
    frozen = dataclasses.replace(target, generate="params/.*")
    slower = zoo.copy_and_resolve_references()
    with slower.unlocked():
        slower.learning_rate = 1e-3  # without the batch's normalisation, 1e-2 diverges
    net = tune_one(frozen, slower, base, images)
    jax.tree.map(np.testing.assert_array_equal, net["batch_stats"], base["batch_stats"])
    gain = accuracy(net, target, *images["test"]) - accuracy(base, target, *images["test"])
    assert gain > 0.3

    # One step of descent on the loss in use, computed here, is one step of training: it normalises by the base's.
    optimizer = finetune.make_optimizer(1e-3, 0.1, 1, "constant")
    x, y = (jnp.asarray(a[:32]) for a in images["train"])
    alone, start, whole = finetune._only(frozen, base)
    key = jax.random.key(0)
    made = finetune.train(alone, optimizer, start, finetune.minibatches(x, y, 32), key, steps=1)
    rows = jax.random.randint(jax.random.fold_in(key, 0), (32,), 0, 32)

    def loss(params):
        logp = jax.nn.log_softmax(target.apply(base | {"params": params}, x[rows]))
        return -logp[jnp.arange(32), y[rows]].mean()

    with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
        by_hand, _ = optimizer.update(jax.grad(loss)(base["params"]), optimizer.init(base["params"]), base["params"])
    step = jax.tree.map(jnp.subtract, whole(jax.tree.map(lambda a: a[0], made))["params"], base["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), step, by_hand)


def test_a_batch_of_one_cannot_be_normalised_by(resnet, tiny_config):
    target, _, base, images = resnet
    config = tiny_config.copy_and_resolve_references()
    with config.unlocked():
        config.zoo.batch_size = 1
    with pytest.raises(PdiffError, match="zoo.batch_size: got 1; allowed for a resnet, .* at least 2"):
        tune_one(target, config.zoo, base, images)
    with unchecked(), pytest.raises(PdiffError, match="zoo.batch_size"):
        finetune.pretrain(target, None, None, config.zoo, 0)
    finetune.check(get_target(tiny_config.target, (8, 8), 10), config.zoo)  # an mlp may
