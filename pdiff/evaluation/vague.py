"""Study: what is drawn for a description that names many tasks?

A network suits the task of the set's grid on whose training images it is most often right; what is reported is its
accuracy there on test images, so no test image says where to look. Where tasks lie on one line or circle, many tasks
suit a network about as well, and the one that is named is the middle of those within MARGIN of the best.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, PyTree

from pdiff import rng
from pdiff.errors import PdiffError
from pdiff.evaluation.bench import Bench
from pdiff.generator import conditioning, refined
from pdiff.generator.generator import Generator, RefinedZoo
from pdiff.results import summary
from pdiff.system.dist import map_chunks, round_up
from pdiff.system.evenly import evenly
from pdiff.tasks.base import Family
from pdiff.tasks.language import TaskSet
from pdiff.zoo.networks import Networks
from pdiff.zoo.score import in_blocks

GRID = 180  # tasks that networks are tried on, over all that can be described
MOST_BINS = 36  # of a set, with at least ROWS tasks of the grid each
ROWS = 2
IMAGES = {"train": 200, "test": 400}  # most, evenly chosen: to say what suits a network, and how good it is there
MARGIN = 0.03  # of accuracy
NEAR = 3.0  # how far off a set's tasks a network's own may be, in the units of descriptions
GOOD = 0.02  # below fine-tuning, of a network that counts as good for a task
HIGH = 0.95  # an accuracy, of whose share there is a row


@dataclasses.dataclass(frozen=True)
class Suited:
    """The task that a network is good for: its description and factors, and the network's test accuracy there."""

    description: str
    factors: tuple[float, ...]
    accuracy: float


class Grid:
    """Tasks of a family that networks are tried on."""

    def __init__(self, generator: Generator, mesh: Mesh, most: int = GRID):
        family = self._family = generator.family
        self.factors = family.grammar.grid(most)
        self._generator = generator
        self._variables = _variables(family, self.factors)
        self._chunk = round_up(8, mesh)

        @jax.jit
        def on_tasks(networks, arrays, variables, x, y, rows):
            apply = generator.bind(arrays).apply

            def on_task(own):
                seen, labels = family.of_task(own, x, y, rows)
                return jax.vmap(lambda n: (apply(n, seen).argmax(-1) == labels).mean())(networks)

            return jax.lax.map(on_task, variables)

        @jax.jit
        def answers(networks, arrays, x):
            apply = generator.bind(arrays).apply
            return jax.lax.map(lambda n: in_blocks(lambda part: apply(n, part).argmax(-1), x), networks)

        @jax.jit
        def accuracies(answered, variables, y, rows):
            def on_task(own):
                chosen = rows if family.choose is None else family.choose(own, rows, len(y))
                return (answered[:, chosen] == family.relabel(own, jnp.zeros((len(chosen), 0)), y[chosen])).mean(1)

            return jax.lax.map(on_task, variables)

        self._on_tasks, self._answers, self._accuracies = on_tasks, answers, accuracies

    def tables(
        self, networks: PyTree[Float[np.ndarray, "nets ..."]], parts: Sequence[str]
    ) -> list[Float[np.ndarray, "nets tasks"]]:
        """Accuracy of every network on every task, on the images of each part."""
        arrays = {"base": self._generator.base}
        held, scores = jax.tree.map(jnp.asarray, networks), []
        for part in parts:
            images = self._family.data[part]
            rows = evenly(len(images.y), IMAGES[part])
            if self._family.choose is not None:  # which looks at how all of them lie
                images = self._family.data["validation" if part == "train" else part]
                rows = np.arange(len(images.y))
            x, y = jnp.asarray(images.x), jnp.asarray(images.y)
            if self._family.same_images:  # each network answers once, and tasks differ by which answers are right
                answered, places = self._answers(held, arrays, x[rows]), np.arange(len(rows))
                scores.append(np.asarray(self._accuracies(answered, self._variables, y[rows], places)).T)
            else:
                run = functools.partial(self._on_part, held, arrays, x, y, rows)
                scores.append(map_chunks(run, self._variables, len(self.factors), self._chunk).T)
        return scores

    def _on_part(self, networks, arrays, x, y, rows, variables):
        return self._on_tasks(networks, arrays, variables, x, y, rows)

    def rows_of(self, tasks: TaskSet, zoo: RefinedZoo) -> Int[np.ndarray, " rows"]:
        """The tasks of the grid that stand for a set: the nearest to each of the refined zoo's that are in it."""
        within = np.asarray(zoo.factors)[zoo.rows_of(tasks)]
        return np.unique(self._family.distance(within, self.factors.astype(np.float32)).argmin(1))

    def suited(
        self, table: Float[np.ndarray, "nets tasks"], rows: Int[np.ndarray, " tasks"] | None = None
    ) -> Int[np.ndarray, " nets"]:
        """The task that suits each network, of the grid or of those `rows` of it that the table has; see above."""
        factors = self.factors if rows is None else self.factors[rows]
        if len(self._family.factor_names) != 1:
            return table.argmax(1)
        weight = np.maximum(table - table.max(1, keepdims=True) + MARGIN, 0)
        period, values = self._family.factor_periods[0], factors[:, 0]
        if not period:
            middle = (weight * values).sum(1) / weight.sum(1)
        else:
            turned = (weight * np.exp(2j * np.pi * values / period)).sum(1)
            middle = np.angle(turned) / (2 * np.pi) * period
        return self._family.distance(middle[:, None].astype(np.float32), factors.astype(np.float32)).argmin(1)

    def suited_of(self, networks: PyTree[Float[np.ndarray, "nets ..."]], tasks: TaskSet) -> list[Suited]:
        """What each network is good for, of a set of tasks of which the refined zoo has some."""
        rows = self.rows_of(tasks, self._generator.refined)
        where, test = (table[:, rows] for table in self.tables(networks, ("train", "test")))
        best = self.suited(where, rows)
        factors = [tuple(map(float, f)) for f in self.factors[rows][best]]
        accuracy = test[np.arange(len(best)), best]
        return [Suited(self._family.describe(f)[0][0], f, float(a)) for f, a in zip(factors, accuracy, strict=True)]


def vague(bench: Bench, sampler: str, networks: dict[str, Networks]) -> list[dict]:
    """The part `vague` of results.json: for each prompt what it was taken for, and how what is drawn fits it.

    Beside what is `generated` stand the hypernetwork under the same words, a task that is drawn from the set and given
    to the hypernetwork, and networks of the zoo of tasks in the set.
    """
    family, count, generator = bench.generator.family, bench.config.eval.vague_samples, bench.generator
    grid, study = Grid(generator, bench.mesh), []
    tuned = _finetuned(family, networks, grid.factors)
    described = not {"text", "sentence"}.isdisjoint(bench.config.sample.condition)
    seen, random = networks["seen"], rng.on_host(bench.config.seed, "vague")
    for prompt in prompts(bench):
        tasks = family.grammar.read(prompt).tasks
        rows = grid.rows_of(tasks, generator.refined)
        condition = conditioning.set_condition(generator, tasks, count, random)
        if condition is None:
            continue
        key = rng.stream(bench.config.seed, "vague/draw")
        compared = {"generated": bench.samplers.networks(bench.params, sampler, condition, key)}
        drawn = np.asarray(generator.refined.means)[generator.refined.draw(tasks, count, random)]
        compared["task_of_set"] = jax.tree.map(
            np.asarray, jax.jit(generator.decode)(drawn.reshape(count, *generator.shape))
        )
        if described:
            one = generator.condition([family.tasks[0]], [prompt], bench.config.sample.condition)
            mean = refined.mean_networks(generator, one, bench.mesh)
            compared["hypernetwork"] = jax.tree.map(lambda w: np.repeat(w, count, 0), mean)
        inside = np.flatnonzero(tasks.contains(family.factors([family.tasks[t] for t in seen.task]).astype(float)))
        if len(inside):
            compared["zoo"] = seen[np.resize(random.permutation(inside), count)].params
        entry = {"prompt": prompt, "said": tasks.said, "tasks": len(rows), "samples": count, "networks": {}}
        for name, nets in compared.items():
            where, test = grid.tables(nets, ("train", "test"))
            entry["networks"][name] = _fit(family, grid, tasks, rows, where, test, tuned)
        study.append(entry)
    return study


def prompts(bench: Bench) -> list[str]:
    """`eval.vague_prompts`, or an example of each kind of sentence that the family's grammar has.

    Raises:
      PdiffError: one of them is not vague.
    """
    grammar, chosen = bench.generator.family.grammar, bench.config.eval.vague_prompts
    for prompt in chosen:
        if grammar.read(prompt).tasks is None:
            raise PdiffError(f"eval.vague_prompts: got {prompt!r}; allowed: vague ones, as {grammar.examples(1)[0]!r}")
    return list(chosen or grammar.examples(len(grammar.constructions)))


def _fit(family: Family, grid: Grid, tasks: TaskSet, rows, where, test, tuned) -> dict:
    """How networks fit a set: `rows` of the grid are in it, `where` and `test` are accuracies on the whole grid."""
    best = grid.suited(where)
    accuracy = test[np.arange(len(best)), best]
    strict = where.argmax(1)
    bins = _bins(rows)
    good = test >= tuned - GOOD
    off = family.distance(grid.factors[best].astype(np.float32), grid.factors[rows].astype(np.float32)).min(1)
    units = np.asarray(family.units)
    near = NEAR * units.max() if len(units) == 1 and units.max() else 0.0
    return {
        "best": summary(test[np.arange(len(strict)), strict]),
        "at_suited": summary(accuracy),
        "high": float((test[np.arange(len(strict)), strict] > HIGH).mean()),
        "inside": float((off <= near + 1e-6).mean()),
        "precision": float(good[:, rows].any(1).mean()),
        "coverage": float(good[:, rows].any(0).mean()),
        **_spread_over(best, rows, bins),
        "by_argmax": _spread_over(strict, rows, bins),
    }


def _bins(rows: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """A bin for each of a set's tasks: neighbours in the grid share one, but never across a gap."""
    pieces = np.cumsum(np.diff(rows, prepend=rows[0]) > 1)
    together = max(ROWS, -(-len(rows) // MOST_BINS))
    bins, start = np.zeros(len(rows), int), 0
    for piece in np.unique(pieces):
        rows_of = np.flatnonzero(pieces == piece)
        number = max(1, round(len(rows_of) / together))
        bins[rows_of] = start + np.arange(len(rows_of)) * number // len(rows_of)
        start += number
    return bins


def _spread_over(
    best: Int[np.ndarray, " nets"], rows: Int[np.ndarray, " rows"], bins: Int[np.ndarray, " rows"]
) -> dict:
    """How often networks suit tasks of each bin, against the share of the set that is in it.

    A network whose task is not in the set counts for the nearest in the grid's order.
    """
    nearest = np.abs(best[:, None] - rows[None]).argmin(1)
    count = bins.max() + 1
    share = np.bincount(bins[nearest], minlength=count) / len(best)
    even = np.bincount(bins, minlength=count) / len(bins)
    return {
        "bins": int(count),
        "bins_hit": int((share > 0).sum()),
        "total_variation": float(np.abs(share - even).sum() / 2),
        "share": [round(float(s), 4) for s in share],
        "even": [round(float(s), 4) for s in even],
    }


def _variables(family: Family, factors: Float[np.ndarray, "tasks factors"]) -> PyTree:
    """The variables of tasks by their factors: of any, where factors say all of a task, or of the family's own."""
    if family.vary is not None:
        return jax.tree.map(lambda *v: np.stack(v), *(family.vary(tuple(map(float, f))) for f in factors))
    nearest = family.distance(factors.astype(np.float32), family.factors()).argmin(1)
    return jax.tree.map(lambda v: np.asarray(v)[nearest], family.variables)


def _finetuned(
    family: Family, networks: dict[str, Networks], factors: Float[np.ndarray, "tasks factors"]
) -> Float[np.ndarray, " tasks"]:
    """Test accuracy of fine-tuning at each task: that of the nearest task for which networks were fine-tuned."""
    ids = np.concatenate([n.task for s, n in networks.items() if s in ("seen", "interp", "unseen", "validation")])
    accuracy = np.concatenate(
        [n.test_accuracy for s, n in networks.items() if s in ("seen", "interp", "unseen", "validation")]
    )
    known = np.unique(ids)
    mean = np.array([accuracy[ids == t].mean() for t in known])
    there = family.factors([family.tasks[t] for t in known])
    return mean[family.distance(factors.astype(np.float32), there).argmin(1)]
