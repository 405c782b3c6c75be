"""Sampling 100 networks of the main job, against p-diff's way of doing it and against the forward calls that it takes.

Parameters are random, since only the time counts; what the samplers' networks are worth is in docs/results.md.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from benchmarks import timing, train_step
from benchmarks.timing import Row, Spread, Turns
from pdiff.diffusion import samplers
from pdiff.generator.generator import Generator
from pdiff.generator.sample import Samplers
from pdiff.system import dist

NETWORKS = 100
COMPARED = ("posterior_mean", "ddim", "dpmpp_2m", "heun")
GUIDED = "ddim"  # the sampler whose guidance is measured
GUIDANCE = 2.0
RIVAL = "p-diff's way in PyTorch"
RIVAL_STEPS, RIVAL_ALL_STEPS = 5, 1000  # steps of it that are timed, and that it takes
FORWARD_CALLS = 10  # timed together
ACCURACY = (
    "accuracies are in docs/results.md: on seen tasks and between them one call is at least as accurate as fine-tuning"
)


def measure(effort: float = 1.0) -> list[Row]:
    """A row for each sampler, and one for guidance."""
    made = train_step.refine(train_step.make_generator())
    params = train_step.random_parameters(made.init)
    with timing.peak_memory() as memory:
        drawing, guided = Samplers(made, dist.make_mesh()), f"{GUIDED} with guidance"
        candidates = {name: _drawn(made, drawing, params, name) for name in COMPARED}
        candidates[guided] = _drawn(made, Samplers(_guided(made, GUIDANCE), dist.make_mesh()), params, GUIDED)
        candidates["forward"] = _forward_calls(made, params)
        for name in COMPARED:
            candidates[name]()
    rival, notes = _rival()
    work = {"forward": FORWARD_CALLS, RIVAL: RIVAL_STEPS / RIVAL_ALL_STEPS}
    measured = timing.take_turns(candidates | rival, max(3, round(6 * effort)), work)
    rows = [_row(made, name, measured, bool(rival), notes) for name in COMPARED]
    rows[0] = dataclasses.replace(rows[0], peak_mb=memory[0] if memory else None)
    ratio = measured.ratio(guided, GUIDED)
    rows.append(
        Row(
            path="guidance",
            what=f"{NETWORKS} networks by {GUIDED}, guidance {GUIDANCE:g} against none",
            unit=f"{NETWORKS} networks",
            ours=measured.time(guided),
            rivals={"no guidance": measured.time(GUIDED)},
            ratios={"no guidance": measured.ratio(GUIDED, guided)},
            goals={"guidance costs < 2.1x": ratio.median < 2.1},
            bounded_by="sample.batch_size",
            notes=f"guidance takes {ratio} times as long; both evaluations are one call of a doubled batch",
        )
    )
    return rows


def calls(made: Generator, name: str) -> int:
    """How often a sampler calls the denoiser: counted, in a run without compilation of one that answers with z."""
    counted, config = 0, made.config.sample

    def denoise(z, sigma):
        nonlocal counted
        counted += 1
        return z

    levels = samplers.noise_levels(made.path, config.num_steps, config.rho)
    with jax.disable_jit():
        keys = jax.random.split(jax.random.key(0), 1)
        samplers.get_sampler(name)(denoise, made.path, jnp.ones((1, 1, 1)), levels, keys)
    return counted


def _row(made: Generator, name: str, measured: Turns, rival: bool, notes: list[str]) -> Row:
    """The row of a sampler: its time against its calls, and against the rival."""
    batches = math.ceil(NETWORKS / made.config.sample.batch_size)
    count = batches * calls(made, name)
    forward = measured.time("forward").median
    names = [RIVAL] if rival else []
    ratios = {n: measured.ratio(n, name) for n in names}
    first = name == COMPARED[0]
    return Row(
        path="sampling",
        what=f"{NETWORKS} networks by {name}, {count // batches} calls for each of {batches} batches",
        unit=f"{NETWORKS} networks",
        **measured.against(name, names),
        limit=f"{count} forward calls of {forward * 1e3:.1f} ms for {made.config.sample.batch_size} networks each",
        share=Spread.of(count * np.array(measured.seconds["forward"]) / np.array(measured.seconds[name])),
        goals={f">= 1000x {n}": r.median >= 1000 for n, r in ratios.items() if first},
        bounded_by="sample.batch_size",
        notes="; ".join([ACCURACY, *notes]),
    )


def _drawn(made: Generator, drawing: Samplers, params: PyTree, name: str) -> Callable[[], PyTree]:
    """A call that draws the networks as the main job does, from the condition to parameter trees on the host."""
    condition = made.condition(made.family.tasks[:NETWORKS], given=made.config.sample.condition)
    key = jax.random.key(0)
    params = dist.replicate(params, dist.make_mesh())
    return lambda: drawing.networks(params, name, condition, key)


def _guided(made: Generator, scale: float) -> Generator:
    with made.config.copy_and_resolve_references().unlocked() as config:
        config.sample.guidance = scale
    return dataclasses.replace(made, config=config)


def _forward_calls(made: Generator, params: PyTree) -> Callable[[], jax.Array]:
    """FORWARD_CALLS calls of the denoiser on one batch, one after the other, on all devices."""
    mesh = dist.make_mesh()
    size = dist.round_up(made.config.sample.batch_size, mesh)

    def call(params, members, z, sigma):
        return made.denoiser(params, members)(z, sigma)

    whole, split = dist.REPLICATED, dist.SHARDED
    call = dist.data_parallel(call, mesh, (whole, split, split, split), split)
    params = dist.replicate(params, mesh)
    members = jax.jit(made.members)(made.condition(made.family.tasks[:size]))
    z, sigma = np.ones((size, *made.shape), np.float32), np.full(size, 2.0, np.float32)
    members, z, sigma = dist.shard((members, z, sigma), mesh)

    def run():
        out = z
        for _ in range(FORWARD_CALLS):
            out = call(params, members, out, sigma)
        return out

    return run


def _rival() -> tuple[dict[str, Callable[[], object]], list[str]]:
    """RIVAL_STEPS of p-diff's steps on as many latents, if PyTorch is there, and notes."""
    try:
        import torch

        from benchmarks import torch_pdiff
    except ImportError:
        return {}, ["without PyTorch; pip install -e '.[bench]'"]
    torch.manual_seed(0)
    model = torch_pdiff.UNet1D()
    latents = torch.randn(NETWORKS, torch_pdiff.LATENT)
    size = sum(p.numel() for p in model.parameters())
    note = f"p-diff's UNet has {size / 1e6:.2f} M parameters; {RIVAL_STEPS} of its {RIVAL_ALL_STEPS} steps are timed"
    return {RIVAL: lambda: torch_pdiff.denoised(model, latents, RIVAL_STEPS)}, [note]


def main() -> None:
    for row in measure():
        print(row)


if __name__ == "__main__":
    main()
