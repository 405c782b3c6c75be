"""Study: how good is a network for a held-out task that is made from a few labelled images of it, and of what?

Each row of the table is a place to start from, and all go on in the same way, by `adapt.Adapter.finetune` on the same
images; what they may choose (space, learning rate, steps) is chosen for each of them on validation tasks:

    prior               the likeliest of networks drawn without a description
    prior_guided        the likeliest of those drawn for the images' likelihood, with `adapt.guided` alone
    prior_described     the likeliest of networks drawn for the task's description
    described           one network drawn for the description: no choice
    refined_zoo         the likeliest of the mean's networks for the seen tasks
    refined_all         the likeliest of all that the prior learned from, which may lie in held-out regions
    zoo                 the likeliest network of the zoo
    reptile             an initialisation learned from the seen tasks (Nichol et al. 2018)
    base                the base
    base_head           the base, of which the last layer alone is fine-tuned; where the target says which one that is

`unlabelled` is the one of the prior's that is surest of its answers on the same images, and is not fine-tuned.
"""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, PyTree

from pdiff import rng
from pdiff.evaluation.bench import Bench
from pdiff.generator import refined
from pdiff.generator.adapt import HEAD, SPACES, WEIGHTS, Adapter, Recipe, log_likelihood
from pdiff.measures.accuracy import repeat
from pdiff.results import summary
from pdiff.tasks.base import REPORTED_SPLITS, Task
from pdiff.tasks.support import UNKNOWN, Support
from pdiff.weights import codec
from pdiff.zoo.store import Networks

MOST_WORDINGS = 4  # of a seen task's description, for each of which there is a network in the refined zoo
LONGER = 5  # times as many steps, which the base and Reptile may take too: they have farther to go
REPTILE_STEPS, REPTILE_TASKS, REPTILE_INNER = 300, 16, 8
REPTILE_RATE, REPTILE_IMAGES = 1e-2, 64

Start = Callable[[Sequence[Task], Support], PyTree[Float[np.ndarray, "tasks ..."]]]


def adaptation(bench: Bench, sampler: str, networks: dict[str, Networks]) -> dict:
    """The part `adaptation` of results.json.

    `splits` has for each held-out split and number of labelled images of a class the accuracy of every row, on test
    images, and by how much `prior` is `ahead` of each other row, task by task. `recipes` has what was chosen. A split
    without tasks is absent; the choice is then made on seen tasks' validation images.
    """
    adapter, config = Adapter(bench.generator, bench.mesh), bench.config
    starts = _starts(bench, sampler, networks, adapter)
    choosing = bench.choosing_tasks(config.eval.adapt_tasks)
    study: dict = {"recipes": {}, "splits": {}}
    for shots in config.eval.adapt_shots:
        study["recipes"][str(shots)] = {}
    for split in REPORTED_SPLITS[1:]:
        tasks = bench.tasks(split, config.eval.adapt_tasks)
        if tasks:
            study["splits"][split] = [{"shots": 0, "accuracy": _without(bench, sampler, networks, tasks)}]
    for shots in config.eval.adapt_shots:
        recipes, began = study["recipes"][str(shots)], {}
        sets = _draw(bench, choosing, shots, "validation")
        for name, start in starts.items():
            tried = {}
            began[name] = start(choosing, sets)
            for recipe in _recipes(bench, name):
                tuned = adapter.finetune(began[name], sets, recipe)
                tried[recipe] = bench.accuracy(tuned, choosing, "validation").values.mean()
            best = max(tried, key=tried.get)
            recipes[name] = {**vars(best), "validation": float(tried[best])}
        for split, rows in study["splits"].items():
            tasks = bench.tasks(split, config.eval.adapt_tasks)
            sets = _draw(bench, tasks, shots, split)
            scores = {}
            for name, start in starts.items():
                recipe = Recipe(**{k: v for k, v in recipes[name].items() if k != "validation"})
                begun = start(tasks, sets)
                scores[name] = bench.accuracy(adapter.finetune(begun, sets, recipe), tasks)
                if name == "prior":
                    scores["prior_chosen"] = bench.accuracy(begun, tasks)
            blank = Support(sets.x, np.full_like(sets.y, UNKNOWN), sets.real)
            scores["unlabelled"] = bench.accuracy(starts["prior"](tasks, blank), tasks)
            ahead = {n: summary(scores["prior"].values[:, 0] - s.values[:, 0]) for n, s in scores.items()}
            rows.append(
                {
                    "shots": shots,
                    "images": float(sets.real.sum(1).mean()),
                    "accuracy": {n: s.summary() for n, s in scores.items()},
                    "ahead": {n: s for n, s in ahead.items() if n != "prior"},
                }
            )
    return study


def _without(bench: Bench, sampler: str, networks: dict[str, Networks], tasks: Sequence[Task]) -> dict:
    """Accuracy without any image: of what is drawn with a description and without, of the zoo's and of the base."""
    zoo, count = networks["seen"], len(tasks)
    some = zoo[rng.on_host(bench.config.seed, "adaptation/zoo").integers(len(zoo), size=count)].params
    base = repeat(codec.take(bench.generator.spec, bench.generator.base), count)
    scores = {
        "prior": bench.scores(sampler, tasks, "adaptation/prior", 1, given=()),
        "described": bench.scores(sampler, tasks, "adaptation/described", 1),
        "zoo": bench.accuracy(some, tasks),
        "base": bench.accuracy(base, tasks),
    }
    return {n: s.summary() for n, s in scores.items()}


def _recipes(bench: Bench, name: str) -> list[Recipe]:
    config = bench.config.adapt
    spaces = SPACES if name.startswith("prior") else (HEAD,) if name == "base_head" else (WEIGHTS,)
    far = name in ("base", "base_head", "reptile")
    steps = (config.steps, LONGER * config.steps) if far else (config.steps,)
    guided = config.guided if name == "prior_guided" else 0
    return [Recipe(*choice, guided) for choice in itertools.product(spaces, config.learning_rates, steps)]


def _starts(bench: Bench, sampler: str, networks: dict[str, Networks], adapter: Adapter) -> dict[str, Start]:
    """By row, what gives each task a network to start from."""
    generator, config = bench.generator, bench.config
    key = rng.stream(config.seed, "adaptation/draw")
    seen = generator.family.split("seen")

    def pool(condition) -> PyTree[Float[np.ndarray, "nets ..."]]:
        return bench.samplers.networks(bench.params, sampler, condition, key)

    def chosen(networks: PyTree) -> Start:
        return lambda tasks, sets: adapter.choose(networks, sets)

    def described(tasks: Sequence[Task], sets: Support) -> PyTree:
        return pool(bench.condition(tasks, 1))

    def prior_described(tasks: Sequence[Task], sets: Support) -> PyTree:
        rows = []
        for i, task in enumerate(tasks):
            support = Support(sets.x[i : i + 1], sets.y[i : i + 1], sets.real[i : i + 1])
            rows.append(adapter.choose(pool(bench.condition([task], config.sample.batch_size)), support))
        return jax.tree.map(lambda *w: np.concatenate(w), *rows)

    def prior_guided(tasks: Sequence[Task], sets: Support) -> PyTree:
        return adapter.draw_guided(bench.params, sets, config.adapt.guided, key)

    def same(network: PyTree) -> Start:
        return lambda tasks, sets: jax.tree.map(np.array, repeat(network, len(tasks)))

    wordings = min(MOST_WORDINGS, len(seen[0].descriptions))
    of_seen = refined.mean_networks(generator, bench.condition(seen, wordings), bench.mesh)
    means = np.asarray(generator.refined.means)
    every = jax.tree.map(np.asarray, jax.jit(generator.decode)(means.reshape(len(means), *generator.shape)))
    base = codec.take(generator.spec, generator.base)
    return {
        "prior": chosen(pool(bench.condition(seen[:1], config.adapt.num_samples, given=()))),
        **({"prior_guided": prior_guided} if config.adapt.guided else {}),
        "prior_described": prior_described,
        "described": described,
        "refined_zoo": chosen(of_seen),
        "refined_all": chosen(every),
        "zoo": chosen(networks["seen"].params),
        **({"reptile": same(reptile(bench, base))} if config.eval.reptile else {}),
        "base": same(base),
        **({"base_head": same(base)} if generator.target.head else {}),
    }


def _draw(bench: Bench, tasks: Sequence[Task], shots: int, stream: str) -> Support:
    """For each task its first `shots` training images of each of its labels, in an order of its own.

    Labels of which there are fewer images have those that there are. All numbers of shots have room for the most: one
    program serves them.
    """
    family, images = bench.generator.family, bench.generator.family.data["train"]
    room = max(bench.config.eval.adapt_shots) * family.num_classes
    x, y, real = (np.zeros((len(tasks), room, *s), t) for s, t in (((family.features,), "f4"), ((), "i4"), ((), bool)))
    label = jax.jit(family.of_task)
    for i, task in enumerate(tasks):
        order = rng.on_host(bench.config.seed, f"adaptation/{stream}", task.id).permutation(len(images.y))
        variables = jax.tree.map(lambda v, t=task.id: v[t], family.variables)
        seen, labels = (np.asarray(a) for a in label(variables, images.x, images.y, order))
        rows = np.concatenate([np.flatnonzero(labels == c)[:shots] for c in range(family.num_classes)])
        x[i, : len(rows)], y[i, : len(rows)], real[i, : len(rows)] = seen[rows], labels[rows], True
    return Support(x, y, real)


def reptile(bench: Bench, base: PyTree) -> PyTree:
    """An initialisation from which seen tasks are soon learned (Reptile, Nichol et al. 2018, algorithm 2, in batches).

    The outer step goes, with a rate that falls to zero, towards the mean of networks after a few inner SGD steps.
    """
    generator, family = bench.generator, bench.generator.family
    images = family.data["train"]
    ids = np.array([t.id for t in family.split("seen")], np.int32)
    variables = jax.tree.map(lambda v: jnp.asarray(v)[ids], family.variables)
    inner = optax.adam(REPTILE_RATE, b1=0.0)

    def loss(network, x, y):
        return -log_likelihood(generator.apply, network, x, y)

    def learned(start, key):
        which, draw = jax.random.split(key)
        mine = jax.tree.map(lambda v: v[jax.random.randint(which, (), 0, len(ids))], variables)

        def step(carry, key):
            network, state = carry
            rows = jax.random.randint(key, (REPTILE_IMAGES,), 0, len(images.y))
            x, y = family.of_task(mine, images.x, images.y, rows)
            gradients = jax.grad(loss)(network, x, y)
            with jax.numpy_dtype_promotion("standard"):  # Optax counts steps in integers
                updates, state = inner.update(gradients, state)
            return (optax.apply_updates(network, updates), state), None

        return jax.lax.scan(step, (start, inner.init(start)), jax.random.split(draw, REPTILE_INNER))[0][0]

    @functools.partial(jax.jit, donate_argnums=0)
    def outer(network, key, rate):
        ends = jax.vmap(learned, (None, 0))(network, jax.random.split(key, REPTILE_TASKS))
        return jax.tree.map(lambda w, e: w + rate * (e.mean(0) - w), network, ends)

    network = jax.tree.map(jnp.array, base)
    for n in range(REPTILE_STEPS):
        key = rng.stream(bench.config.seed, "adaptation/reptile", n)
        network = outer(network, key, np.float32(0.5 * (1 - n / REPTILE_STEPS)))
    return jax.tree.map(np.asarray, network)
