"""Compiles a run's steps ahead of time for TPUs that need not be there, and reports what they would take.

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
# On a host without a TPU libtpu asks the metadata server where it runs, and complains when there is no answer.
QUIET = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
# Of the compiler, from -1 to 1. At 0, the default, it takes five times as long, in search of faster tiles.
EFFORT = -1.0
# What a row of compile.json calls the compiler's sizes.
MEMORY = {"arguments": "argument_size", "outputs": "output_size", "aliased": "alias_size"}
MEMORY |= {"temporaries": "temp_size", "code": "generated_code_size", "peak": "peak_memory"}


@dataclasses.dataclass(frozen=True)
class Program:
    """A step and the abstract arguments that it is compiled for."""

    step: Callable
    arguments: tuple


def compile_config(config: ConfigDict | None, names: str, workdir: Path | str | None = None) -> str:
    """Compiles STEPS for each topology of `names`, separated by commas, and returns the table as Markdown.

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
    generator = shapes(config)
    rows = []
    for name, mesh in meshes.items():
        for step in STEPS:
            log.info("%s: compiling %s", name, step)
            rows.append(describe(generator, name, mesh, step))
    compiled = {"config": json.loads(config_lib.to_json(config)), "rows": rows}
    text = table.markdown(compiled)
    if workdir is not None:
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_atomic(workdir / "compile.json", json.dumps(compiled, indent=1).encode())
        files.write_atomic(workdir / "compile.md", text.encode())
    return text


def without_devices() -> None:
    """Keeps JAX on the CPU and libtpu from looking for a TPU. Before any use of a device.

    Raises:
      PdiffError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise PdiffError("--mode=compile: needs libtpu, which is not installed; `pip install 'pdiff[tpu]'` installs it")
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
        form = f"{chip.name}:{'x'.join('ABC'[: chip.axes])} with whole numbers, as in {EXAMPLES}"
        raise PdiffError(f"--topology: got {name!r}; allowed for {chip.name}: {form}")
    sides = [int(n) for n in shape.split("x")]
    host = [min(2, n) for n in sides[:2]] + [1]
    options = {"chips_per_host_bounds": host} | ({"chip_config_name": chip.config} if chip.config else {})
    try:
        return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    except (jax.errors.JaxRuntimeError, ValueError) as e:
        reason = " ".join(str(e).split()).removeprefix("INVALID_ARGUMENT: ")
        raise PdiffError(f"--topology: got {name!r}, which libtpu refuses ({reason}); allowed: as in {EXAMPLES}") from e


def shapes(config: ConfigDict) -> Generator:
    """The generator of a config, of shapes alone."""
    family = get_family(config.tasks, images.shapes_of(config.tasks))
    return abstract(config, family, get_target(config.target, family.image_shape, family.num_classes))


def program(generator: Generator, mesh: Mesh, step: str) -> Program:
    """One of STEPS, by name, for the devices of `mesh`."""
    if step in ("mean", "train"):
        return _training(generator, mesh, step)
    return {"sample": _sample, "zoo": _zoo}[step](generator, mesh)


def stage(generator: Generator, mesh: Mesh, step: str) -> train.Stage:
    """The stage of training with that step, "mean" or "train", without its data."""
    if step == "train":
        return stages.prior(generator, "", mesh)
    untrained = generator.bind(generator.arrays() | dict.fromkeys(("mean_params", "subspace", "refined")))
    zero, accuracy = np.zeros(1, np.int32), np.zeros(1, np.float32)
    return stages.mean(untrained, Networks(zero, zero, zero, accuracy, accuracy, params={}), "", mesh)


def _training(generator: Generator, mesh: Mesh, step: str) -> Program:
    training = stage(generator, mesh, step)
    size, names = training.settings.batch_size, ("index",) if step == "train" else ("task", "wording", "index")
    batch: dict = {name: jax.ShapeDtypeStruct((size,), jnp.int32) for name in names}
    if step == "mean" and generator.config.mean.zoo_weight:
        one = codec.take(generator.spec, generator.target.abstract())
        if generator.coordinates:
            one = jax.ShapeDtypeStruct(generator.mean.shape, jnp.float32)
        batch |= {"params": _stacked(one, size), "fitted": jax.ShapeDtypeStruct((size,), jnp.bool_)}
    arguments = (train.abstract_state(training), batch, _shapes(training.constants))
    return Program(train.make_step(training, mesh), arguments)


def _sample(generator: Generator, mesh: Mesh) -> Program:
    config = generator.config.sample
    size = dist.round_up(config.batch_size, mesh)
    params = jax.eval_shape(generator.init, jax.random.key(0))
    condition = generator.condition([generator.family.tasks[0]], given=config.condition)
    condition = _stacked(_shapes(jax.tree.map(lambda x: x[0], condition)), size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    index = jax.ShapeDtypeStruct((size,), jnp.int32)
    draw = make_sampler(generator, config.samplers[0], mesh)
    return Program(draw, (params, _shapes(generator.arrays() | {"base": None}), condition, key, index))


def _zoo(generator: Generator, mesh: Mesh) -> Program:
    config, family, target = generator.config, generator.family, generator.target
    numbers = jax.ShapeDtypeStruct((build.chunk_size(config, mesh),), jnp.int32)
    constants = _shapes(build.chunk_constants(family, target.abstract()))
    return Program(build.chunk_step(family, target, config, mesh), ((numbers, numbers), constants))


def _shapes(tree: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes of arrays, with the dtypes that they have on a device."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype)), tree)


def _stacked(tree: PyTree, count: int) -> PyTree[jax.ShapeDtypeStruct]:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), tree)


def describe(generator: Generator, topology: str, mesh: Mesh, step: str) -> dict:
    """One row of compile.json: what `step` takes of each device of `topology`. Bytes, FLOPs and seconds."""
    chip = roofline.chip_of(topology)
    start = time.perf_counter()
    abstract_step = program(generator, mesh, step)
    lowered = abstract_step.step.lower(*abstract_step.arguments)
    models = [jax.eval_shape(init, jax.random.key(0)) for init in (generator.init_mean, generator.init)]
    row = {"topology": topology, "chips": mesh.devices.size, "mesh": dict(mesh.shape), "step": step}
    row |= {"model_params": sum(map(count_parameters, models)), "generated_params": generator.spec.num_params}
    row["hbm"] = chip.memory
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
    return row | _measures(generator, row, executable)


def _measures(generator: Generator, row: dict, executable: jax.stages.Compiled) -> dict:
    chip, chips = roofline.chip_of(row["topology"]), row["chips"]
    work, cost, memory = hlo.analyse(executable.as_text()), executable.cost_analysis(), executable.memory_analysis()
    repeated = work.matmul_flops / work.matmul_flops_once if work.matmul_flops_once else 1.0
    flops = cost["flops"] * repeated
    times = roofline.times(chip, flops, work.hbm_bytes, sum(c.sent for c in work.collectives))
    dit = analytic_flops(generator, row["step"])
    sizes = {name: getattr(memory, f"{attribute}_in_bytes") for name, attribute in MEMORY.items()}
    needs = sum(sizes[name] for name in ("arguments", "outputs", "temporaries", "code")) - sizes["aliased"]
    return {
        "flops": flops,
        "flops_total": flops * chips,
        "flops_loops_once": cost["flops"],
        "matmul_flops": work.matmul_flops,
        "dit_flops_total": dit,
        "matmuls_to_dit": work.matmul_flops * chips / dit if dit else None,
        **sizes,
        "needs": needs,
        "fits": needs <= chip.memory,
        "hbm_bytes": work.hbm_bytes,
        "bytes_accessed_loops_once": cost["bytes accessed"],
        "collectives": _collectives(work.collectives),
        "times": dataclasses.asdict(times),
        "step_s": times.step,
        "bound": times.bound,
    }


def _collectives(collectives: tuple[hlo.Collective, ...]) -> dict[str, dict]:
    """By kind and size of the groups: how many run, and the bytes that a device sends for them."""
    by_kind: dict[str, dict] = {}
    for c in collectives:
        entry = by_kind.setdefault(f"{c.kind} of {c.group}", {"count": 0, "bytes": 0, "sent": 0.0})
        entry["count"] += c.times
        entry["bytes"] += c.times * c.bytes
        entry["sent"] += c.sent
    return by_kind


def analytic_flops(generator: Generator, step: str) -> float:
    """FLOPs of the prior's matrix products in a whole step, counted from its sizes: 2 for each product and sum.

    Training is three times a forward pass, but for the first layers, whose input needs no gradient, and one more pass
    through the blocks with `model.remat`. Sampling has the mean's layers after its encoders, too, and the subspace;
    what is computed of the members is the same in each of its calls, and computed once. Zero for the steps of the mean
    and the zoo, which have no transformer.
    """
    model, (tokens, dim) = generator.config.model, generator.shape
    width, length = model.width, tokens + 1
    block = 2 * length * width * width * (4 + 2 * model.mlp_ratio) + 4 * length**2 * width + 12 * width**2
    ends = 2 * tokens * dim * width
    first, second = 2 * MEMBERS * tokens * dim * width, 2 * MEMBERS * width**2 + 4 * width**2  # layers of the members
    rest = ends + 2 * width * (64 + width) + 4 * width**2
    if step == "train":
        passes = model.depth * block * (4 if model.remat else 3) + 2 * (3 * ends + first) + 3 * (second + rest)
        return generator.config.train.batch_size * passes
    if step == "sample":
        steps, weights = generator.config.sample.num_steps, generator.spec.num_tokens * generator.spec.token_dim
        calls = {"heun": 2 * steps - 1, "posterior_mean": 1}.get(generator.config.sample.samplers[0], steps)
        calls *= 1 if generator.config.sample.guidance == 1 else 2
        once = first + second + 2 * generator.config.mean.width * (width + weights) + 4 * tokens * dim * weights
        return generator.config.sample.batch_size * (calls * (model.depth * block + 3 * ends + rest) + once)
    return 0.0
