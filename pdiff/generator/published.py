"""A trained generator as a small folder of its own: what sampling needs, and nothing else.

    config.json           the run's
    generator/            as in the run's workdir, the mean's parameters as float16
    ema.safetensors       the averaged parameters, float16, named by Flax path
    results.json          what says how well it does
    manifest.json         the sha256 of every file

It can stand in for a workdir in sampling: `restore` reads the parameters of either.
"""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jaxtyping import ArrayLike, Float, PyTree

from pdiff import config as config_lib
from pdiff import results as results_lib
from pdiff import scenario
from pdiff.errors import PdiffError
from pdiff.generator import generator as generator_lib
from pdiff.generator.generator import Generator
from pdiff.scenario import Facts
from pdiff.system import dist, files

PARAMETERS, KIND = "ema.safetensors", "published generator"
RESULTS = ("adaptation", "arcs", "commit", "config", "created", "factors", "mixing", "model", "seed", "selection",
           "singular", "splits", "target", "weight_space")  # fmt: skip
EMBEDDED = Path(__file__).parents[1] / "pretrained" / "interp"  # the one that comes with the package

Params = PyTree[Float[ArrayLike, "..."]]


def is_published(where: Path) -> bool:
    """Whether the folder is a published generator and no workdir."""
    return (Path(where) / PARAMETERS).exists()


def write(generator: Generator, params: Params, results: dict, where: Path, imported: Facts | None = None) -> None:
    """Writes the folder, whole or not at all, with the facts that an import left in the run's workdir.

    Raises:
      PdiffError: it exists, is in no existing folder, or a parameter is too large for float16.
    """
    where = Path(where)
    if where.exists():
        raise PdiffError(f"--out: {where} exists; allowed: a new folder")
    if not where.absolute().parent.is_dir():
        raise PdiffError(f"--out: {where} is in no existing folder")
    arrays = traverse_util.flatten_dict(_halved(params), sep="/")
    partial = files.partial_of(where)
    try:
        generator_lib.save(dataclasses.replace(generator, mean_params=_halved(generator.mean_params)), partial)
        if imported is not None:
            scenario.save(imported, partial)
        files.write_atomic(partial / PARAMETERS, safetensors.numpy.save(arrays))
        config_lib.write(partial / "config.json", generator.config)
        results_lib.write(partial / "results.json", {k: results[k] for k in RESULTS if k in results})
        files.write_manifest(partial, KIND)
        partial.rename(where)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _halved(params: Params) -> dict:
    """The parameters as float16; a PdiffError where one is too large for that."""
    with np.errstate(over="ignore"):  # reported below, by name
        arrays = {k: np.asarray(v, np.float16) for k, v in traverse_util.flatten_dict(params, sep="/").items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise PdiffError(f"{name}: the parameters are not finite in float16; allowed: at most 65504")
    return traverse_util.unflatten_dict(arrays, sep="/")


def read(where: Path, like: PyTree) -> PyTree[Float[np.ndarray, "..."]]:
    """The averaged parameters, float32, which have the shapes of `like`.

    Raises:
      PdiffError: a file is damaged, or the parameters are of another model.
    """
    where = Path(where)
    files.verify_manifest(where, KIND, "publish it again, or get a whole copy")
    arrays = safetensors.numpy.load_file(where / PARAMETERS)
    shapes = {k: v.shape for k, v in arrays.items()}
    allowed = {k: v.shape for k, v in traverse_util.flatten_dict(like, sep="/").items()}
    for name in sorted(shapes.keys() | allowed.keys()):
        shape, right = shapes.get(name, "absent"), allowed.get(name, "absent")
        if shape != right:
            raise PdiffError(
                f"{where / PARAMETERS}: {name} is {shape}; allowed in this pdiff: {right}; "
                "publish it again, from a run of this version"
            )
    tree = traverse_util.unflatten_dict({k: v.astype(np.float32) for k, v in arrays.items()}, sep="/")
    return jax.tree.map(lambda _, value: value, like, tree)


def restore(static: Generator, workdir: Path, part: str = "ema", final: bool = False) -> tuple[PyTree, str]:
    """The averaged parameters of the newest intact checkpoint of a run, or with the part `params` the trained ones.

    A published folder has the averaged ones alone. With them comes the sha256 of the manifest of their files, that of
    the very checkpoint that is read, whatever a training beside it writes meanwhile.

    Raises:
      PdiffError: there is none; or it is not the last of the run's training, where only the `final` one will do.
    """
    like = jax.eval_shape(static.init, jax.random.key(0))
    if is_published(workdir):
        return read(workdir, like), files.sha256(Path(workdir) / files.MANIFEST)
    from pdiff.system.checkpoint import Checkpoints  # Orbax is slow to import, and a published folder needs none

    sharding = jax.sharding.NamedSharding(dist.make_mesh(), dist.REPLICATED)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), like)
    checkpoints = Checkpoints(Path(workdir) / "checkpoints", static.config.train.keep_checkpoints)
    try:
        step, restored = checkpoints.restore_part(part, like)
        digest = files.sha256(checkpoints.directory / str(step) / files.MANIFEST)
    finally:
        checkpoints.close()
    if final and step < static.config.train.steps:
        raise PdiffError(
            f"{checkpoints.directory}: training is at step {step} of {static.config.train.steps}; the command that "
            "started the run goes on from there"
        )
    return restored, digest


def restore_params(static: Generator, workdir: Path, part: str = "ema", final: bool = False) -> PyTree:
    """The parameters of `restore`, alone."""
    return restore(static, workdir, part, final)[0]
