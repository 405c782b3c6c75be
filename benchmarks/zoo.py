"""The zoo: many networks of the main job, fine-tuned for 1000 steps each, against PyTorch.

Rivals are a plain PyTorch loop, one network at a time, and all at once by `torch.func`. Both draw minibatches from
images that are rendered beforehand, and are timed over fewer steps and networks. pdiff is timed as it is used:
`build.chunk_step`, with rendering and both accuracies, on all devices.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import context, timing
from benchmarks.timing import Row, Spread
from pdiff import rng
from pdiff.compile import hlo
from pdiff.system import dist
from pdiff.zoo import build, finetune

LOOP_STEPS, FUNC_STEPS, FUNC_NETWORKS = 200, 20, (32, 128, 512)
CHECKED_STEPS, CHECKED_NETWORKS = 5, 4
BETAS, EPSILON = (0.9, 0.999), 1e-8
GOALS = {"loop": 25, "torch.func": 3}


def measure(effort: float = 1.0) -> list[Row]:
    """Seconds of one network of 1000 steps: one row. About 100 s on two quiet cores at effort 1."""
    parts = context.make()
    zoo = parts.config.zoo
    with zoo.unlocked():
        zoo.steps = 1000
    jobs = build._jobs(parts.family, zoo)
    count = build.chunk_size(parts.config, parts.mesh)
    job = dist.shard((jobs.task[:count], jobs.seed[:count]), parts.mesh)
    constants = dist.replicate(build.chunk_constants(parts.family, parts.generator.base), parts.mesh)
    step = build.chunk_step(parts.family, parts.target, parts.config, parts.mesh).lower(job, constants).compile()
    candidates, work = {"pdiff": lambda: step(job, constants)}, {"pdiff": count}
    notes = "PyTorch is missing: pip install -e '.[bench]'"
    with contextlib.suppress(ImportError):
        rivals, notes = _rivals(parts)
        check(parts)
        for name, (run, share) in rivals.items():
            candidates[name], work[name] = run, share
    with timing.peak_memory() as peak:
        turns = timing.take_turns(candidates, max(3, round(7 * effort)), work)
    limit = timing.peak_flops()
    share = np.array([flops(parts) * zoo.steps / s / limit for s in turns.seconds["pdiff"]])
    ratios = {n: turns.ratio(n, "pdiff") for n in candidates if n != "pdiff"}
    return [
        Row(
            path="zoo",
            what=f"MLP 64-32-10, {zoo.steps} steps of AdamW, batch {zoo.batch_size}, {count} networks together",
            unit="one network",
            **turns.against("pdiff", ratios),
            limit=f"matmul rate, {limit / 1e9:.0f} GFLOP/s in a large product",
            share=Spread.of(share),
            goals={f">= {GOALS[n]} x {n}": r.median >= GOALS[n] for n, r in ratios.items()},
            peak_mb=peak[0] if peak else None,
            bounded_by="zoo.chunk_size",
            notes=notes,
            flops=flops(parts) * zoo.steps,
            moved=hlo.analyse(step.as_text()).hbm_bytes * parts.mesh.devices.size / count,
        )
    ]


def flops(parts: context.Context) -> float:
    """Of the matrix products in a step of one network: forwards, and backwards to all but the images."""
    widths = (parts.family.features, *parts.config.target.widths, parts.family.num_classes)
    layers = [2 * a * b for a, b in itertools.pairwise(widths)]
    return parts.config.zoo.batch_size * (3 * sum(layers) - layers[0])


def check(parts: context.Context) -> None:
    """Raises AssertionError unless both rivals do what pdiff does: same start, same rows, same parameters after."""
    config = parts.config.copy_and_resolve_references()
    with config.unlocked():
        config.zoo.steps = CHECKED_STEPS
    jobs = build._jobs(parts.family, config.zoo)
    task, seed = jobs.task[:CHECKED_NETWORKS], jobs.seed[:CHECKED_NETWORKS]
    mesh = dist.make_mesh(jax.local_devices()[:1])
    constants = build.chunk_constants(parts.family, parts.generator.base)
    ours = build.chunk_step(parts.family, parts.target, config, mesh)((task, seed), constants).params["params"]
    images, labels = rendered(parts, task)
    rows = minibatch_rows(parts, seed, CHECKED_STEPS)
    for name, found in {
        "loop": [train_one(parts, x, labels, r, CHECKED_STEPS) for x, r in zip(images, rows, strict=True)],
        "torch.func": train_together(parts, images, labels, rows, CHECKED_STEPS),
    }.items():
        for i, network in enumerate(found):
            for path, value in network.items():
                layer, leaf = path.split("/")
                np.testing.assert_allclose(value, ours[layer][leaf][i], atol=1e-3, err_msg=f"{name}: {path}")


def rendered(parts: context.Context, task: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The training images of each of these tasks (tasks, images, pixels), and the labels, which they share."""
    data = parts.family.data["train"]
    own = jax.tree.map(lambda v: jnp.asarray(v)[task], parts.family.variables)
    return np.asarray(jax.vmap(parts.family.render, (0, None))(own, data.x)), np.asarray(data.y)


def minibatch_rows(parts: context.Context, seeds: np.ndarray, steps: int) -> np.ndarray:
    """The rows that pdiff draws for these seeds: (seeds, steps, batch)."""
    keys = rng.per_example(rng.stream(parts.config.seed, "zoo/batches"), jnp.asarray(seeds))
    count, size = len(parts.family.data["train"].y), parts.config.zoo.batch_size

    def of(key, step):
        return finetune.draw_rows(jax.random.fold_in(key, step), count, size)

    return np.asarray(jax.vmap(jax.vmap(of, (None, 0)), (0, None))(keys, jnp.arange(steps)))


def rate(parts: context.Context, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0: a cosine to a hundredth."""
    return parts.config.zoo.learning_rate * (0.99 * 0.5 * (1 + np.cos(np.pi * step / steps)) + 0.01)


def _start(parts: context.Context) -> dict:
    """The base by path, which every network starts from; kernels are (inputs, outputs)."""
    return {f"{a}/{b}": np.array(v) for a, d in parts.generator.base["params"].items() for b, v in d.items()}


def _module(parts: context.Context):
    """The MLP as PyTorch has it, with the base's weights, and the name of each parameter by Flax's path."""
    import torch
    from torch import nn

    from benchmarks import torch_device  # noqa: F401  its settings are PyTorch's

    start = _start(parts)
    layers = [f"Dense_{i}" for i in range(len(start) // 2)]
    modules, names = [], {}
    for i, layer in enumerate(layers):
        kernel = start[f"{layer}/kernel"]
        linear = nn.Linear(*kernel.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(kernel.T.copy()))
            linear.bias.copy_(torch.from_numpy(start[f"{layer}/bias"]))
        modules += [linear, nn.ReLU()]
        names |= {f"{layer}/kernel": f"{2 * i}.weight", f"{layer}/bias": f"{2 * i}.bias"}
    return nn.Sequential(*modules[:-1]), names


def _as_flax(names: dict[str, str], values: dict) -> dict[str, np.ndarray]:
    found = {path: values[name].detach().cpu().numpy() for path, name in names.items()}
    return {p: np.swapaxes(v, -1, -2) if p.endswith("kernel") else v for p, v in found.items()}


def train_one(
    parts: context.Context, x: np.ndarray, y: np.ndarray, rows: np.ndarray, total: int
) -> dict[str, np.ndarray]:
    """One network in plain PyTorch: as many steps as `rows` has, of a schedule over `total`."""
    import torch

    zoo = parts.config.zoo
    model, names = _module(parts)
    x, y, rows = torch.tensor(x), torch.tensor(y).long(), torch.tensor(rows).long()
    optimizer = torch.optim.AdamW(model.parameters(), zoo.learning_rate, BETAS, EPSILON, zoo.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate(parts, i, total) / zoo.learning_rate)
    loss = torch.nn.CrossEntropyLoss()
    for r in rows:
        optimizer.zero_grad()
        loss(model(x[r]), y[r]).backward()
        optimizer.step()
        schedule.step()
    return _as_flax(names, dict(model.named_parameters()))


def train_together(
    parts: context.Context, x: np.ndarray, y: np.ndarray, rows: np.ndarray, total: int
) -> list[dict[str, np.ndarray]]:
    """All networks (the leading axis of `x` and `rows`) at once: `torch.func`, and AdamW of all leaves together."""
    import torch
    from torch.func import functional_call, grad, vmap

    zoo = parts.config.zoo
    model, names = _module(parts)
    params = {k: v.detach().repeat(len(x), *[1] * v.ndim) for k, v in model.named_parameters()}
    x, y, rows = torch.tensor(x), torch.tensor(y).long(), torch.tensor(rows).long()

    def loss(params, x, y):
        return torch.nn.functional.cross_entropy(functional_call(model, params, (x,)), y)

    gradients, network = vmap(grad(loss)), torch.arange(len(x))[:, None]
    values = list(params.values())
    means, squares = ([torch.zeros_like(v) for v in values] for _ in range(2))
    with torch.no_grad():
        for i in range(rows.shape[1]):
            r = rows[:, i]
            slopes = list(gradients(params, x[network, r], y[r]).values())
            step_size = rate(parts, i, total)
            torch._foreach_lerp_(means, slopes, 1 - BETAS[0])
            torch._foreach_mul_(squares, BETAS[1])
            torch._foreach_addcmul_(squares, slopes, slopes, 1 - BETAS[1])
            scale = torch._foreach_sqrt(squares)
            torch._foreach_div_(scale, (1 - BETAS[1] ** (i + 1)) ** 0.5)
            torch._foreach_add_(scale, EPSILON)
            torch._foreach_mul_(values, 1 - step_size * zoo.weight_decay)
            torch._foreach_addcdiv_(values, means, scale, -step_size / (1 - BETAS[0] ** (i + 1)))
    made = _as_flax(names, params)
    return [{p: v[n] for p, v in made.items()} for n in range(len(x))]


def _rivals(parts: context.Context) -> tuple[dict[str, tuple[Callable, float]], str]:
    """Each rival with the share of a network's steps that one call does; threads and chunk are its fastest."""
    import torch

    from benchmarks import torch_device  # noqa: F401  its settings are PyTorch's

    most = max(FUNC_NETWORKS)
    jobs = build._jobs(parts.family, parts.config.zoo)
    x, y = rendered(parts, jobs.task[:most])
    steps = parts.config.zoo.steps
    loop_rows = minibatch_rows(parts, jobs.seed[:1], LOOP_STEPS)[0]
    func_rows = minibatch_rows(parts, jobs.seed[:most], FUNC_STEPS)
    both = (torch.get_num_threads(), 1)

    def loop(threads, rows=loop_rows):
        with _threads(threads):
            train_one(parts, x[0], y, rows, steps)

    def together(threads, size, rows=func_rows):
        with _threads(threads):
            train_together(parts, x[:size], y, rows[:size], steps)

    loop_threads = _fastest({(n,): 1 for n in both}, lambda n: loop(n, loop_rows[:40]))[0]
    threads, size = _fastest({(n, s): s for n in both for s in FUNC_NETWORKS}, lambda n, s: together(n, s))
    rivals = {
        "loop": (lambda: loop(loop_threads), LOOP_STEPS / steps),
        "torch.func": (lambda: together(threads, size), size * FUNC_STEPS / steps),
    }
    notes = (
        f"PyTorch is scaled from fewer steps: the loop from {LOOP_STEPS} of one network on {loop_threads} threads, "
        f"torch.func from {FUNC_STEPS} of {size} together on {threads}; these threads and sizes were its fastest"
    )
    return rivals, notes


def _fastest(options: dict[tuple, float], run: Callable) -> tuple:
    """The option whose call is fastest for the work that it does, given beside it."""
    measured = timing.take_turns(
        {str(o): lambda o=o: run(*o) for o in options}, 2, {str(o): w for o, w in options.items()}
    )
    return min(options, key=lambda o: min(measured.seconds[str(o)]))


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch with so many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)
