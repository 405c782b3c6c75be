"""Do expectations hold? Tasks that chose nothing are asked for by their descriptions, and scored on test images.

    python -m benchmarks.expectations --workdir=runs/interp                # 300 random tasks, 15 s on 2 cores

A line for each kind of place: how many tasks, and the share of their mean accuracies, and of their networks', that lie
in the interval that `expect` gave beforehand, which is to hold 90% of the tasks. The random tasks are drawn evenly
from all that the family can describe, and are none of the run's. Beside them stand the ends of regions, the `singular`
places with and without what the run measured there, and measured tasks, for which other networks are drawn.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pdiff import results as results_lib
from pdiff.ask import api
from pdiff.ask.expect import Expectation, Expectations
from pdiff.config.fields import DESCRIBING
from pdiff.evaluation import studies
from pdiff.evaluation.bench import Bench
from pdiff.generator import generator, published
from pdiff.system import dist
from pdiff.tasks.base import Family

GRID = 36000  # places that random tasks are drawn from
NETWORKS = 3  # for each task
ROUNDING = 1e-6  # accuracies are means in float32


@dataclasses.dataclass(frozen=True)
class Held:
    """How often intervals held, by kind of place.

    Attributes:
      tasks: how many.
      of_tasks, of_networks: the share of tasks' mean accuracies in their intervals, and of single networks'.
      width: mean of the intervals.
      bias: mean of what was measured minus what was expected.
    """

    tasks: int
    of_tasks: float
    of_networks: float
    width: float
    bias: float


def random_tasks(family: Family, count: int, seed: int) -> Float[np.ndarray, "tasks factors"]:
    """Factors of at most `count` tasks, none of them the family's."""
    grid, random = family.grammar.grid(GRID), np.random.default_rng(seed)
    chosen = np.round(grid[random.permutation(len(grid))[: 2 * count]], 4)
    known = family.distance(chosen.astype(np.float32), family.factors()).min(1) == 0
    return chosen[~known][:count]


def ends(family: Family) -> Float[np.ndarray, "tasks factors"]:
    """The ends of all regions, for each kind of task; what other factors there are, are those of one of the kind."""
    values = sorted({round(float(e), 4) for regions in family.arcs.values() for region in regions for e in region})
    indicators = np.array(family.units) == 0
    kinds = {tuple(f[indicators]): f for f in family.factors()}
    return np.array([(value, *rest[1:]) for value in values for rest in kinds.values()], np.float64)


def held(expected: Sequence[Expectation | None], accuracy: Float[np.ndarray, "tasks networks"]) -> Held:
    """The share of accuracies in the intervals; a task of which nothing is known counts as none."""
    known = [i for i, e in enumerate(expected) if e is not None]
    low, high, mean = (np.array([getattr(expected[i], n) for i in known]) for n in ("low", "high", "mean"))
    values = accuracy[known]

    def inside(x):
        return (x >= low - ROUNDING) & (x <= high + ROUNDING)

    networks = float(np.mean([inside(column) for column in values.T]))
    bias = float((values.mean(1) - mean).mean())
    return Held(len(known), float(inside(values.mean(1)).mean()), networks, float((high - low).mean()), bias)


def measure(workdir: str | None, count: int, seed: int = 0) -> dict[str, Held]:
    """By kind of place, of `count` random tasks and all others."""
    where = api.place(workdir)
    static, results = generator.load(where), results_lib.read(where / "results.json")
    family, sampler, use = static.family, results["selection"]["sampler"], static.config.condition.use
    read = [n for n in DESCRIBING if n in use]
    given = tuple(n for n in read if n in static.config.sample.condition) or tuple(read)
    bench = Bench(static, published.restore_params(static, where), dist.make_mesh())
    expectations = Expectations(results, family)
    without = Expectations({k: v for k, v in results.items() if k != "singular"}, family)
    rows = [row["factors"] for entry in results["splits"].values() for row in entry["per_task"]]
    places = {"random": random_tasks(family, count, seed), "measured": np.array(rows)}
    places["ends"] = ends(family)
    places["singular"] = np.array(family.singular)[:, None]
    found: dict[str, Held] = {}
    for name, factors in places.items():
        if not len(factors):
            continue
        there = family.at(factors)
        scores = studies.at_factors(bench, there, sampler, f"expectations/{name}/{seed}", NETWORKS, given=given).values
        expected = [expectations.for_factors(t.factors, sampler, given) for t in there.tasks]
        found[name] = held(expected, scores)
        if name == "random" and family.arcs:
            region = np.array([expectations.split_at(t.factors[0]) for t in there.tasks])
            groups = {f"random, {split}": region == split for split in np.unique(region)}
            groups["random, held out"] = region != "seen"
            found |= {k: held([expected[i] for i in np.flatnonzero(g)], scores[g]) for k, g in groups.items()}
        if name == "singular":
            unmeasured = [without.for_factors(t.factors, sampler, given) for t in there.tasks]
            found["singular, unmeasured"] = held(unmeasured, scores)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", help="of a finished run, or a published folder; the package's without")
    parser.add_argument("--tasks", type=int, default=300, help="random ones")
    parser.add_argument("--seed", type=int, default=0, help="of the random tasks and the networks")
    args = parser.parse_args()
    print("| place | tasks | hold tasks | hold networks | width | bias |\n| --- | --- | --- | --- | --- | --- |")
    for name, h in measure(args.workdir, args.tasks, args.seed).items():
        print(f"| {name} | {h.tasks} | {h.of_tasks:.1%} | {h.of_networks:.1%} | {h.width:.3f} | {h.bias:+.4f} |")


if __name__ == "__main__":
    main()
