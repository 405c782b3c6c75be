"""The other generators that a run trains on its zoo, each for as long as its own training took.

Finished ones are kept in `<workdir>/rivals/<name>`, so that a run goes on where it stopped and `--mode=evaluate` trains
nothing. Which there are is `eval.rivals`.
"""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import safetensors.numpy
from flax import traverse_util
from jax.sharding import Mesh

from pdiff import api, files
from pdiff import config as config_lib
from pdiff import train as train_lib
from pdiff.baselines.g_pt import GPt
from pdiff.baselines.hypernetwork import Hypernetwork
from pdiff.baselines.hypernetwork import rival as hypernetwork_of
from pdiff.baselines.latent_kde import LatentKDE
from pdiff.baselines.latent_unet import LatentUNet
from pdiff.baselines.learned import Learned, TrainingZoo
from pdiff.baselines.p_diff import PDiff
from pdiff.baselines.pca_flow import PCAFlow
from pdiff.generator import Generator
from pdiff.logs import log
from pdiff.models.dit import count_parameters
from pdiff.stopping import StopSignal
from pdiff.zoo.store import Networks

LEARNED: dict[str, type[Learned]] = {c.name: c for c in (LatentUNet, PDiff, GPt, PCAFlow, LatentKDE)}
PARAMS, FACTS = "params.safetensors", "facts.json"


def fit_all(
    generator: Generator, networks: Networks, zoo: str, workdir: Path, mesh: Mesh, stop: StopSignal, seconds: float
) -> tuple[dict[str, Learned | Hypernetwork], dict[str, dict]]:
    """The rivals that the config names, trained or restored, and for each its seconds of training and its parameters.

    `networks` are the seen ones, `zoo` their fingerprint, `seconds` the time of the generator's own training.

    Raises:
      PdiffError: what was kept of one is damaged.
      Interrupted: a signal came; finished rivals are kept.
    """
    fitted, facts, training = {}, {}, None
    for name in config_lib.rivals(generator.config.eval.rivals):
        where = workdir / "rivals" / name
        if not (where / FACTS).exists():
            log.info("training %s on the same zoo", name)
        start = time.perf_counter()
        if name == "hypernetwork":  # as many updates as the generator, with its checkpoints
            where.mkdir(parents=True, exist_ok=True)
            made = hypernetwork_of(generator)
            params = train_lib.train(made, networks, zoo, where, mesh, stop)
            fitted[name] = Hypernetwork(made, mesh, params)
        elif (where / files.MANIFEST).exists():
            fitted[name] = _restore(name, generator, mesh, where)
        else:
            steps = generator.config.eval.rival_steps
            training = training or TrainingZoo.of(generator, networks, mesh, stop, seconds, steps)
            fitted[name] = LEARNED[name].fit(training)
        if not (where / FACTS).exists():
            _save(where, fitted[name], time.perf_counter() - start)
        facts[name] = json.loads((where / FACTS).read_text())
    return fitted, facts


def kept(generator: Generator, workdir: Path, mesh: Mesh) -> dict[str, Learned | Hypernetwork]:
    """The rivals that a run has trained, restored.

    Raises:
      PdiffError: what was kept of one is damaged.
    """
    found = {}
    for name in config_lib.rivals(generator.config.eval.rivals):
        where = workdir / "rivals" / name
        if name == "hypernetwork":
            made = hypernetwork_of(generator)
            found[name] = Hypernetwork(made, mesh, api.restore_params(made, where))
        else:
            found[name] = _restore(name, generator, mesh, where)
    return found


def _save(where: Path, rival: Learned | Hypernetwork, seconds: float) -> None:
    facts = {"seconds": seconds, "num_params": count_parameters(rival.params)}
    if isinstance(rival, Learned):
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir(parents=True)
        flat = traverse_util.flatten_dict(rival.params, sep="/")
        arrays = {k: np.ascontiguousarray(v) for k, v in flat.items()}
        files.write_atomic(where / PARAMS, safetensors.numpy.save(arrays))
    files.write_atomic(where / FACTS, json.dumps(facts).encode())
    if isinstance(rival, Learned):
        files.write_manifest(where)


def _restore(name: str, generator: Generator, mesh: Mesh, where: Path) -> Learned:
    files.verify_manifest(where, f"delete {where} and run again to train it anew")
    flat = safetensors.numpy.load_file(where / PARAMS)
    return LEARNED[name](generator, mesh, traverse_util.unflatten_dict(flat, sep="/"))
