"""Networks so large that the mean and the prior work in coordinates on the seen networks' principal components.

The mean's last layer has its width times as many parameters as are generated: more than the zoo itself where it is
wider than there are networks. But what it learns from the zoo lies in the span of the zoo's networks: the gradients of
the squared distance from them do. So such a mean loses nothing by predicting coordinates there (`weights.basis`), and
nothing but the basis then has the size of the networks. What a network does on images, the functional loss, can lead
out of that span: there coordinates give something up, which has not been measured.

The folder `basis` of a workdir holds the basis, and the statistics with it. It is read again if a run goes on.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from pdiff import config as config_lib
from pdiff.errors import RERUN, PdiffError
from pdiff.system import files, processes
from pdiff.system.evenly import evenly
from pdiff.system.logs import log
from pdiff.tasks import Family
from pdiff.weights import basis, stats, table
from pdiff.weights.basis import Basis
from pdiff.weights.spec import Spec
from pdiff.weights.stats import Stats
from pdiff.zoo.networks import Networks, StoredNetworks

FOLDER = KIND = "basis"
IDENTITY = "identity.json"
REMEDY = f"delete that folder and {RERUN} to compute it again"
LARGE, LARGE_ON_IMAGES = 1 << 22, 1 << 24  # parameters of the mean's last layer, and where it has a functional loss
BYTES = 16  # of each in training: itself, its average and two of the optimizer's


def suits(config: ConfigDict, num_params: int, networks: int) -> bool:
    """Whether the mean and the subspace work in coordinates, for so many seen networks."""
    if config.weights.basis != "auto":
        return config.weights.basis == "always"
    layer = config.mean.width * num_params
    if not config.mean.functional_weight:
        return layer > LARGE
    return layer > LARGE_ON_IMAGES and (config.mean.width > networks or BYTES * layer > config.zoo.memory_mb * 1e6)


def count_seen(config: ConfigDict, family: Family) -> int:
    """How many networks of seen tasks a zoo will have that is fine-tuned."""
    return len(family.split("seen")) * config.zoo.seeds_per_task * config.zoo.keep_last


def spanning(config: ConfigDict, networks: int) -> int:
    """How many of so many seen networks the basis is computed from: there is one component less."""
    return min(networks, config.subspace.networks)


def check(config: ConfigDict, spec: Spec, networks: int) -> None:
    """Raises PdiffError unless what the mean's training decodes fits into memory."""
    size = basis.size_on_disk(spec, spanning(config, networks), config.weights.basis_dtype)
    if config.mean.functional_weight and size > config.zoo.memory_mb * 1e6:
        raise PdiffError(
            f"zoo.memory_mb: got {config.zoo.memory_mb:g}; allowed: at least {np.ceil(size / 1e6):.0f}, which the "
            "basis of the seen networks takes, through which mean.functional_weight needs them; or fewer of them "
            "(--config.subspace.networks), or half as much by --config.weights.basis_dtype=bfloat16"
        )


def prepared(
    config: ConfigDict,
    spec: Spec,
    seen: Networks | StoredNetworks,
    base_tokens: Callable[[], Float[np.ndarray, "tokens token_dim"]],
    workdir: Path,
) -> tuple[Basis, Stats]:
    """The basis and the statistics of the seen networks: what is there already, or computed.

    Raises:
      PdiffError: there are too few networks, they are all the same, or the disk has no room.
    """
    check(config, spec, len(seen))
    where, identity = Path(workdir) / FOLDER, _identity(config, spec, len(seen))

    def compute() -> None:
        if _is_whole(where, identity):
            return
        shutil.rmtree(where, ignore_errors=True)
        Path(workdir).mkdir(parents=True, exist_ok=True)
        partial_folder = files.partial_of(where)
        try:
            _fit(config, spec, seen, base_tokens, partial_folder)
            files.write_json(partial_folder / IDENTITY, identity)
            files.write_manifest(partial_folder, KIND)
            os.rename(partial_folder, where)
        finally:
            shutil.rmtree(partial_folder, ignore_errors=True)

    processes.on_first(compute, "done with the basis")
    fitted = basis.read(spec, where)
    log.info("basis: %d components of %d weights, %.2f GB", fitted[0].count, spec.num_params, fitted[0].nbytes / 1e9)
    return fitted


def read(spec: Spec, workdir: Path) -> tuple[Basis, Stats] | None:
    """What a run or a published generator keeps; None where it works in weights.

    Raises:
      PdiffError: it is damaged.
    """
    where = Path(workdir) / FOLDER
    if not where.exists():
        return None
    files.verify_manifest(where, KIND, REMEDY)
    return basis.read(spec, where)


def _fit(config: ConfigDict, spec: Spec, seen: Networks | StoredNetworks, base_tokens: Callable, where: Path) -> None:
    weights, used = config.weights, spanning(config, len(seen))
    on_disk = isinstance(seen, StoredNetworks)
    size = basis.size_on_disk(spec, used, weights.basis_dtype) + (4 * spec.num_params * len(seen) if on_disk else 0)
    files.require_space(where.parent, size, "the basis of the seen networks and what it is computed from")
    if on_disk:
        blocks = seen.blocks(max(1, stats.BLOCK_ELEMENTS // spec.num_params))
        rows: table.Table = table.OnDisk(spec, (b.params for b in blocks), len(seen), where.parent)
    else:
        rows = table.InMemory(spec, seen.params)
    base = base_tokens() if weights.center == "base" else None
    fitted = stats.fit_table(spec, rows, center=weights.center, scale=weights.scale, base_tokens=base)
    basis.fit(spec, rows, fitted, evenly(len(seen), used), where, weights.basis_dtype)


def _identity(config: ConfigDict, spec: Spec, networks: int) -> dict:
    """What a basis that is there already must agree on."""
    weights = config.weights.to_dict()
    return {"zoo": config_lib.zoo_fingerprint(config), "networks": networks, "used": spanning(config, networks)} | {
        n: weights[n] for n in ("center", "scale", "token_dim", "basis_dtype")
    }


def _is_whole(where: Path, identity: dict) -> bool:
    """Whether that basis is there; what is damaged is told and computed again."""
    if not (where / files.MANIFEST).exists():
        return False
    try:
        files.verify_manifest(where, KIND, REMEDY)
    except files.OtherFormat:
        raise
    except PdiffError as e:
        log.warning("warning: %s", e)
        return False
    return files.read_json(where / IDENTITY, REMEDY) == identity
