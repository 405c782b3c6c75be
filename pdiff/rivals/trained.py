"""The rivals that a run trains on its zoo, each for as long as its own training took.

Finished ones are kept in `<workdir>/rivals/<name>`, so that a run goes on where it stopped and `--mode=evaluate` trains
nothing. Which there are is `eval.rivals`.
"""

import shutil
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jax.sharding import Mesh

from pdiff import config as config_lib
from pdiff.errors import RERUN, PdiffError
from pdiff.generator.generator import Generator
from pdiff.models.dit import count_parameters
from pdiff.rivals.g_pt import GPt
from pdiff.rivals.latent_kde import LatentKDE
from pdiff.rivals.latent_unet import LatentUNet
from pdiff.rivals.learned import Learned, TrainingZoo
from pdiff.rivals.p_diff import PDiff
from pdiff.rivals.pca_flow import PCAFlow
from pdiff.system import dist, files, processes
from pdiff.system.logs import log
from pdiff.system.stopping import StopSignal
from pdiff.zoo.store import Networks

LEARNED: dict[str, type[Learned]] = {c.name: c for c in (LatentUNet, PDiff, GPt, PCAFlow, LatentKDE)}
PARAMS, FACTS = "params.safetensors", "facts.json"
KIND, REMEDY = "rival", f"{RERUN}: it trains that rival anew"


def fit_all(
    generator: Generator, networks: Networks, workdir: Path, mesh: Mesh, stop: StopSignal, seconds: float
) -> tuple[dict[str, Learned], dict[str, dict]]:
    """The rivals that the config names, trained or restored, and for each its seconds of training and its parameters.

    `networks` are the seen ones, `seconds` the time of the generator's own training.

    Raises:
      PdiffError: what was kept of one is damaged.
      Interrupted: a signal came; finished rivals are kept.
    """
    names = config_lib.rivals(generator.config.eval.rivals)
    # They train for a time, which no two processes agree on: the first does it alone.
    alone = partial(_fit_learned, generator, networks, workdir, mesh, stop, seconds)
    processes.on_first(alone, "done with the rivals")
    facts = {n: files.read_json(workdir / "rivals" / n / FACTS, REMEDY) for n in names}
    return kept(generator, workdir, mesh), facts


def _fit_learned(generator, networks, workdir, mesh, stop, seconds) -> None:
    """All rivals that are not there yet; of many processes, the first runs this alone, on its own devices."""
    if processes.count() > 1:
        mesh, stop = dist.make_mesh(jax.local_devices()), StopSignal()  # which no signal reaches
    training = None
    for name in config_lib.rivals(generator.config.eval.rivals):
        where = workdir / "rivals" / name
        if _is_whole(where):
            continue
        log.info("training %s on the same zoo", name)
        start = time.perf_counter()
        steps = generator.config.eval.rival_steps
        training = training or TrainingZoo.of(generator, networks, mesh, stop, seconds, steps)
        params = LEARNED[name].fit(training).params
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        arrays = {k: np.ascontiguousarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}
        files.write_atomic(where / PARAMS, safetensors.numpy.save(arrays))
        facts = {"seconds": time.perf_counter() - start, "num_params": count_parameters(params)}
        files.write_json(where / FACTS, facts)
        files.write_manifest(where, KIND)


def _is_whole(where: Path) -> bool:
    """Whether a rival was finished and is as it was; of a damaged one a warning names the file."""
    try:
        verify(where)
    except PdiffError as e:
        if (where / files.MANIFEST).exists():
            log.warning("warning: %s", e)
            (where / files.MANIFEST).unlink()
        return False
    return True


def verify(where: Path) -> None:
    """Raises PdiffError, naming the file, if what was kept of a rival in that folder is damaged or unfinished."""
    files.verify_manifest(where, KIND, REMEDY)


def kept(generator: Generator, workdir: Path, mesh: Mesh) -> dict[str, Learned]:
    """The rivals that a run has trained, restored.

    Raises:
      PdiffError: what was kept of one is damaged.
    """
    names = config_lib.rivals(generator.config.eval.rivals)
    rivals = {}
    for name in names:
        where = workdir / "rivals" / name
        verify(where)
        flat = safetensors.numpy.load_file(where / PARAMS)
        rivals[name] = LEARNED[name](generator, mesh, traverse_util.unflatten_dict(flat, sep="/"))
    return rivals
