"""Scoring: test accuracy of 1,000 networks of the main job, each on the images of a task, against PyTorch.

The rival loads one state dict after the other into a module and takes the argmax of its logits on the task's images,
which it has rendered beforehand. pdiff is timed as it is used: `Scorer` renders each task's images while it scores.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import context, timing
from benchmarks.timing import Row, Spread
from pdiff.measures.accuracy import Scorer

NETWORKS, LOOP_NETWORKS, GOAL = 1000, 100, 20
NOISE = 0.05  # standard deviation of the noise that tells the networks apart


def measure(effort: float = 1.0) -> list[Row]:
    """Seconds of 1,000 accuracies: one row. About 30 s on two quiet cores at effort 1."""
    parts = context.make()
    networks, task = some(parts, NETWORKS)
    score = Scorer(parts.generator, "test", parts.mesh)
    candidates, work = {"pdiff": lambda: score(networks, task)}, {}
    notes = "PyTorch is missing: pip install -e '.[bench]'"
    with contextlib.suppress(ImportError):
        import torch

        from benchmarks import torch_device  # noqa: F401  its settings are PyTorch's

        rival = Rival(parts, networks, task)
        check(parts)
        for threads in dict.fromkeys((torch.get_num_threads(), 1)):
            name = f"loop, {threads} threads" if threads > 1 else "loop, 1 thread"
            candidates[name] = lambda n=threads: rival(range(LOOP_NETWORKS), n)
            work[name] = LOOP_NETWORKS / NETWORKS
        notes = f"the loop scores {LOOP_NETWORKS} networks, on images rendered beforehand, and is scaled"
    with timing.peak_memory() as peak:
        turns = timing.take_turns(candidates, max(3, round(15 * effort)), work)
    limit = timing.peak_flops()
    ratios = {n: turns.ratio(n, "pdiff") for n in work}
    share = np.array([flops(parts) * NETWORKS / s / limit for s in turns.seconds["pdiff"]])
    images = len(parts.family.data["test"].y)
    return [
        Row(
            path="scoring",
            what=f"{NETWORKS:,} MLPs 64-32-10, {images} test images of {len(set(task.tolist()))} tasks",
            unit=f"{NETWORKS:,} networks",
            **turns.against("pdiff", ratios),
            limit=f"matmul rate, {limit / 1e9:.0f} GFLOP/s in a large product, of the networks without rendering",
            share=Spread.of(share),
            goals={f">= {GOAL} x the loop": min(r.median for r in ratios.values()) >= GOAL} if ratios else {},
            peak_mb=peak[0] if peak else None,
            bounded_by="eval.chunk_size",
            notes=notes,
        )
    ]


def some(parts: context.Context, count: int) -> tuple[dict, np.ndarray]:
    """The short zoo's seen networks, repeated with noise, as generated parts; and a task for each, all in turn."""
    made = np.random.default_rng(0)
    seen = parts.networks["seen"]
    rows = np.arange(count) % len(seen)

    def noised(p):
        chosen = np.asarray(p)[rows]
        return chosen + NOISE * made.standard_normal(chosen.shape, np.float32)

    return jax.tree.map(noised, seen.params), np.sort(np.arange(count, dtype=np.int32) % len(parts.family.tasks))


def flops(parts: context.Context) -> float:
    """Of the matrix products of one network on all test images, without rendering."""
    kernels = [v.size for v in jax.tree.leaves(parts.generator.base["params"]) if np.ndim(v) == 2]
    return 2 * sum(kernels) * len(parts.family.data["test"].y)


def check(parts: context.Context, count: int = 50) -> None:
    """Raises AssertionError unless the rival finds pdiff's accuracies; a tie of logits may fall on either side."""
    networks, task = some(parts, count)
    ours = Scorer(parts.generator, "test", parts.mesh)(networks, task)
    images = len(parts.family.data["test"].y)
    np.testing.assert_allclose(Rival(parts, networks, task)(range(count), 1), ours, atol=1.5 / images)


class Rival:
    """A loop over state dicts in PyTorch; state dicts and each task's images are made beforehand."""

    def __init__(self, parts: context.Context, networks: dict, task: np.ndarray):
        import torch
        from torch import nn

        kernels = [layer["kernel"] for _, layer in sorted(networks["params"].items())]
        layers = [m for k in kernels for m in (nn.Linear(*k.shape[1:]), nn.ReLU())]
        self._model, self._task = nn.Sequential(*layers[:-1]), task
        self._states = [
            {
                f"{2 * i}.{name}": torch.tensor(np.ascontiguousarray(layer[leaf][n].T))
                for i, (_, layer) in enumerate(sorted(networks["params"].items()))
                for name, leaf in (("weight", "kernel"), ("bias", "bias"))
            }
            for n in range(len(task))
        ]
        data = parts.family.data["test"]
        tasks = np.unique(task)
        own = jax.tree.map(lambda v: jnp.asarray(v)[tasks], parts.family.variables)
        made = np.asarray(jax.vmap(parts.family.render, (0, None))(own, data.x))
        self._images = dict(zip(tasks.tolist(), torch.tensor(made), strict=True))
        self._labels = torch.tensor(np.asarray(data.y)).long()

    def __call__(self, rows: range, threads: int) -> np.ndarray:
        """Accuracies of these networks."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found = []
        with torch.inference_mode():
            for n in rows:
                self._model.load_state_dict(self._states[n])
                answers = self._model(self._images[int(self._task[n])]).argmax(-1)
                found.append((answers == self._labels).float().mean().item())
        torch.set_num_threads(before)
        return np.array(found)
