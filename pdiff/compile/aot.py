"""Compiles a run's steps ahead of time for TPUs that need not be there, and says what they would take.

    python -m pdiff.main --config=configs/pod.py --mode=compile --topology=v5e:4x4,v5p:2x2x2

libtpu compiles for a topology by its name alone. What is compiled are the very steps that run: `train.make_step` of the
mean (`mean`) and of the prior (`train`), `sample.make_sampler`, `zoo.build.chunk_step`, on abstract arguments laid out
over the topology's devices. No array of the run is made: no zoo, no base, and images only if they come with a package.
"""

import dataclasses
import importlib.util
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from jaxtyping import PyTree
from ml_collections import ConfigDict

from pdiff import config as config_lib
from pdiff.compile import hlo, roofline, table
from pdiff.errors import PdiffError
from pdiff.generator.generator import MEMBERS, Generator, abstract
from pdiff.generator.sample import make_sampler
from pdiff.models.dit import count_parameters
from pdiff.system import dist, files, logs, sharding
from pdiff.system.logs import log
from pdiff.targets import get_target
from pdiff.tasks import get_family
from pdiff.tasks.data import images
from pdiff.training import stages, train
from pdiff.weights import codec
from pdiff.zoo import build
from pdiff.zoo.networks import Networks

STEPS = ("mean", "train", "sample", "zoo")
EXAMPLES = "v4:2x2x2, v5e:4x4, v5e:16x16, v5p:2x2x2, v6e:4x4"
# On a host without a TPU libtpu asks the metadata server what it is on, and complains of what it does not find.
QUIET = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
# Of the compiler, from -1 to 1. At 0, the default, it takes five times as long, in search of faster tiles.
EFFORT = -1.0


@dataclasses.dataclass(frozen=True)
class Program:
    """A step and the abstract arguments that it is compiled for."""

    step: Callable
    arguments: tuple


def compile_config(
    config: ConfigDict | None, names: str, steps: tuple[str, ...] = STEPS, workdir: Path | str | None = None
) -> str:
    """Compiles `steps` for each topology of `names`, separated by commas, and returns the table as Markdown.

    With `workdir` also writes compile.json and compile.md there.

    Raises:
      PdiffError: there is no config, or it is not valid or does not fit the devices; libtpu is missing, or refuses a
        topology.
    """
    logs.set_up()
    if config is None:
        raise PdiffError("--config: missing; allowed: a scenario such as configs/pod.py")
    config_lib.validate(config)
    without_devices()
    meshes = {name: dist.make_mesh(topology_devices(name), config.mesh.model) for name in names.split(",")}
    for mesh in meshes.values():
        sharding.check(config, mesh)
    made = shapes(config)
    rows = []
    for name, mesh in meshes.items():
        for step in steps:
            log.info("%s: compiling %s", name, step)
            rows.append(describe(made, name, mesh, step))
    found = {"config": json.loads(config_lib.to_json(config)), "rows": rows}
    text = table.markdown(found)
    if workdir is not None:
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_atomic(workdir / "compile.json", json.dumps(found, indent=1).encode())
        files.write_atomic(workdir / "compile.md", text.encode())
    return text


def without_devices() -> None:
    """Keeps JAX on the CPU and libtpu from looking for a TPU. Before any use of a device.

    Raises:
      PdiffError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise PdiffError(
            "--mode=compile: needs libtpu, which is not installed; install it with `pip install 'pdiff[tpu]'`"
        )
    os.environ.update(QUIET)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_exec_time_optimization_effort", EFFORT)
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot be read without a TPU


def topology_devices(name: str) -> list:
    """The devices of a topology, by the name of a chip and the shape of a slice: 'v5e:4x4'.

    Raises:
      PdiffError: the name is malformed, its chip is unknown, or libtpu refuses it.
    """
    chip = roofline.chip_of(name)
    shape = name.partition(":")[2]
    if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{chip.axes - 1}}}", shape):
        raise PdiffError(
            f"--topology: got {name!r}; allowed for {chip.name}: {chip.name}:{'x'.join('ABC'[: chip.axes])} with whole "
            f"numbers, as in {EXAMPLES}"
        )
    sides = [int(n) for n in shape.split("x")]
    host = [min(2, n) for n in sides[:2]] + [1]
    options = {"chips_per_host_bounds": host} | ({"chip_config_name": chip.config} if chip.config else {})
    try:
        return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    except (jax.errors.JaxRuntimeError, ValueError) as e:
        reason = " ".join(str(e).split()).removeprefix("INVALID_ARGUMENT: ")
        raise PdiffError(f"--topology: got {name!r}, which libtpu refuses ({reason}); allowed: as in {EXAMPLES}") from e


def shapes(config: ConfigDict) -> Generator:
    """The generator of a config in shapes alone."""
    family = get_family(config.tasks, images.shapes_of(config.tasks))
    return abstract(config, family, get_target(config.target, family.image_shape, family.num_classes))


def program(made: Generator, mesh: Mesh, step: str) -> Program:
    """The step of that name of STEPS for the devices of `mesh`."""
    make = {"mean": _training, "train": _training, "sample": _sample, "zoo": _zoo}
    return make[step](made, mesh, step)


def stage(made: Generator, mesh: Mesh, step: str) -> train.Stage:
    """The training that a step is one of, "mean" or "train", without its data."""
    if step == "train":
        return stages.prior(made, "", mesh)
    before = made.bind(made.arrays() | dict.fromkeys(("mean_params", "subspace", "refined")))
    whole, share = np.zeros(1, np.int32), np.zeros(1, np.float32)
    return stages.mean(before, Networks(whole, whole, whole, share, share, params={}), "", mesh)


def _training(made: Generator, mesh: Mesh, step: str) -> Program:
    of = stage(made, mesh, step)
    size, names = of.settings.batch_size, ("index",) if step == "train" else ("task", "wording", "index")
    batch: dict = {name: jax.ShapeDtypeStruct((size,), jnp.int32) for name in names}
    if step == "mean" and made.config.mean.zoo_weight:
        batch["params"] = _stacked(codec.take(made.spec, made.target.abstract()), size)
    return Program(train.make_step(of, mesh), (train.abstract_state(of), batch, _shapes(of.constants)))


def _sample(made: Generator, mesh: Mesh, step: str) -> Program:
    config = made.config.sample
    size = dist.round_up(config.batch_size, mesh)
    params = jax.eval_shape(made.init, jax.random.key(0))
    one = _shapes(made.condition([made.family.tasks[0]], given=config.condition))
    condition = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), one)
    key = jax.eval_shape(lambda: jax.random.key(0))
    index = jax.ShapeDtypeStruct((size,), jnp.int32)
    draw = make_sampler(made, config.samplers[0], mesh)
    return Program(draw, (params, _shapes(made.arrays() | {"base": None}), condition, key, index))


def _zoo(made: Generator, mesh: Mesh, step: str) -> Program:
    numbers = jax.ShapeDtypeStruct((build.chunk_size(made.config, mesh),), jnp.int32)
    constants = _shapes(build.chunk_constants(made.family, made.target.abstract()))
    return Program(build.chunk_step(made.family, made.target, made.config, mesh), ((numbers, numbers), constants))


def _shapes(tree: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes of arrays, with the dtypes that they have on a device."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype)), tree)


def _stacked(tree: PyTree, count: int) -> PyTree[jax.ShapeDtypeStruct]:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), tree)


def describe(made: Generator, topology: str, mesh: Mesh, step: str) -> dict:
    """One row of compile.json: what `step` takes of each device of `topology`. Bytes, FLOPs and seconds."""
    chip = roofline.chip_of(topology)
    start = time.perf_counter()
    ready = program(made, mesh, step)
    lowered = ready.step.lower(*ready.arguments)
    models = [jax.eval_shape(init, jax.random.key(0)) for init in (made.init_mean, made.init)]
    row = {
        "topology": topology, "chips": mesh.devices.size, "mesh": dict(mesh.shape), "step": step,
        "model_params": sum(map(count_parameters, models)), "generated_params": made.spec.num_params,
        "hbm": chip.memory,
    }  # fmt: skip
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        # "Used 20.5G of 15.75G hbm", or "… temporaries (29.39G) exceeds available HBM (15.75G)"
        needed = re.search(r"(?:Used |temporaries \()([\d.]+)([KMGT])", str(e))
        if not needed:
            raise
        used = float(needed[1]) * 1024 ** (1 + "KMGT".index(needed[2]))
        return row | {"needs": used, "fits": False, "compile_s": time.perf_counter() - start}
    row["compile_s"] = time.perf_counter() - start
    return row | _measures(made, chip, mesh.devices.size, step, executable)


def _measures(made: Generator, chip: roofline.Chip, chips: int, step: str, executable) -> dict:
    work, cost, memory = hlo.analyse(executable.as_text()), executable.cost_analysis(), executable.memory_analysis()
    repeated = work.matmul_flops / work.matmul_flops_once if work.matmul_flops_once else 1.0
    flops = cost["flops"] * repeated
    times = roofline.times(chip, flops, work.hbm_bytes, sum(c.sent for c in work.collectives))
    dit = analytic_flops(made, step)
    needs = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    )  # fmt: skip
    return {
        "flops": flops, "flops_total": flops * chips, "flops_loops_once": cost["flops"],
        "matmul_flops": work.matmul_flops, "dit_flops_total": dit,
        "matmuls_to_dit": work.matmul_flops * chips / dit if dit else None,
        "arguments": memory.argument_size_in_bytes, "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes, "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes, "peak": memory.peak_memory_in_bytes,
        "needs": needs, "fits": needs <= chip.memory,
        "hbm_bytes": work.hbm_bytes, "bytes_accessed_loops_once": cost["bytes accessed"],
        "collectives": _collectives(work.collectives),
        "times": dataclasses.asdict(times), "step_s": times.step, "bound": times.bound,
    }  # fmt: skip


def _collectives(found: tuple[hlo.Collective, ...]) -> dict[str, dict]:
    """By kind and size of the groups: how many run, and the bytes that a device sends for them."""
    by_kind: dict[str, dict] = {}
    for c in found:
        entry = by_kind.setdefault(f"{c.kind} of {c.group}", {"count": 0, "bytes": 0, "sent": 0.0})
        entry["count"] += c.times
        entry["bytes"] += c.times * c.bytes
        entry["sent"] += c.sent
    return by_kind


def analytic_flops(made: Generator, step: str) -> float:
    """FLOPs of the prior's matrix products in a whole step, counted from its sizes: 2 for each product and sum.

    Training is three times a forward pass, but for the first layers, whose input needs no gradient, and one more pass
    through the blocks with `model.remat`. Sampling has the mean's layers after its encoders, too, and the subspace;
    what is made of the members is the same in each of its calls, and made once. Zero for the steps of the mean and the
    zoo, which have no transformer.
    """
    model, (tokens, dim) = made.config.model, made.shape
    width, length = model.width, tokens + 1
    block = 2 * length * width * width * (4 + 2 * model.mlp_ratio) + 4 * length**2 * width + 12 * width**2
    ends = 2 * tokens * dim * width
    read, told = 2 * MEMBERS * tokens * dim * width, 2 * MEMBERS * width**2 + 4 * width**2  # members, layer by layer
    rest = ends + 2 * width * (64 + width) + 4 * width**2
    if step == "train":
        passes = model.depth * block * (4 if model.remat else 3) + 2 * (3 * ends + read) + 3 * (told + rest)
        return made.config.train.batch_size * passes
    if step == "sample":
        steps, weights = made.config.sample.num_steps, made.spec.num_tokens * made.spec.token_dim
        calls = {"heun": 2 * steps - 1, "posterior_mean": 1}.get(made.config.sample.samplers[0], steps)
        calls *= 1 if made.config.sample.guidance == 1 else 2
        once = read + told + 2 * made.config.mean.width * (width + weights) + 4 * tokens * dim * weights
        return made.config.sample.batch_size * (calls * (model.depth * block + 3 * ends + rest) + once)
    return 0.0
