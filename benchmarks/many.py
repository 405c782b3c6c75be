"""Ten thousand networks of 10^5 parameters are drawn and scored in memory that does not grow with their number.

    python -m benchmarks.many

All of them at once would be 4 GB of parameters alone. The models are small and untrained, since what is measured is
what there is of each network: its noise, its weights and its answers to all test images of its task.
"""

import dataclasses
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import memory
from benchmarks.timing import Row, Spread, peak_memory
from benchmarks.train_step import random_parameters
from pdiff import rng
from pdiff.compile import aot
from pdiff.evaluation.bench import Bench
from pdiff.generator.generator import Generator
from pdiff.system import dist
from pdiff.tasks import get_family
from pdiff.weights.stats import Stats
from pdiff.weights.subspace import Subspace

PARAMETERS, SAMPLES, TASKS, BATCH = 100_000, 10_000, 8, 64
SAMPLER = "posterior_mean"
MOST_MB = 4 * 1024**3 / 1e6


def make_config() -> ConfigDict:
    """The target of `memory.SIZES[PARAMETERS]`."""
    config = memory.make_config(PARAMETERS)
    with config.unlocked():
        config.sample.batch_size = BATCH
    return config


def make_generator(config: ConfigDict) -> Generator:
    """The generator of `config` for a zoo that is made up: weights of one scale around 0, in any directions."""
    shapes = aot.shapes(config)
    center = np.zeros(shapes.spec.mask.shape, np.float32)
    stats = Stats(center=center, scale=0.1 * shapes.spec.mask.astype(np.float32))
    base = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes.base)
    basis = np.random.default_rng(0).standard_normal(shapes.subspace.basis.shape, np.float32) * center.size**-0.5
    subspace = Subspace(center=center, basis=basis, scale=np.float32(1))
    made = {"stats": stats, "base": base, "mean_params": random_parameters(shapes.init_mean), "subspace": subspace}
    return dataclasses.replace(shapes.bind(shapes.arrays() | made), family=get_family(config.tasks))


def make_bench(generator: Generator) -> Bench:
    """With fresh parameters."""
    return Bench(generator, jax.jit(generator.init)(rng.stream(0, "benchmarks/many")), dist.make_mesh())


def measure(effort: float = 1.0) -> list[Row]:
    """Seconds for 100 networks, drawn and scored, and the most memory that the process had meanwhile."""
    bench = make_bench(make_generator(make_config()))
    generator = bench.generator
    tasks, count = generator.family.split("seen")[:TASKS], max(BATCH, int(SAMPLES / TASKS * min(1.0, effort)))
    samples = count * TASKS
    bench.scores(SAMPLER, tasks, "benchmarks/warm_up", 1)
    rows = np.repeat([t.id for t in tasks], count).astype(np.int32)
    asked = (bench.params, SAMPLER, bench.condition(tasks, count), rng.stream(0, "benchmarks/many"))
    ends = [time.perf_counter()]
    with peak_memory() as peak:
        for _ in bench.samplers.batches(*asked, rows=rows, make=bench.score["test"].batch):
            ends.append(time.perf_counter())
    size = generator.spec.num_params
    peak_mb = peak[0] if peak else None
    whole = f"{samples:,} networks of {size:,} parameters"
    return [
        Row(
            path="samples",
            what=f"{whole}, drawn ({SAMPLER}) and scored on {len(generator.family.data['test'].y)} images each",
            unit="100 networks",
            # The first batch has the start of the second in its time.
            ours=Spread.of(np.diff(ends[1:]) * 100 / BATCH),
            goals={} if peak_mb is None else {"< 4 GiB": peak_mb < MOST_MB},
            peak_mb=peak_mb,
            bounded_by="sample.batch_size",
            notes=f"{ends[-1] - ends[0]:.0f} s in all; parameters of all of them: {4e-6 * samples * size:,.0f} MB",
        )
    ]


if __name__ == "__main__":
    print(*measure(), sep="\n")
