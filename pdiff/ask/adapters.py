"""A network that is an adapter of a published model (`Target.peft`), as a folder that `peft` loads."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from jaxtyping import Float

from pdiff.imports.lora import CONFIG
from pdiff.imports.lora.peft import MODEL
from pdiff.targets.base import Peft


def arrays(network: Mapping[str, Float[np.ndarray, "..."]], peft: Peft) -> dict[str, Float[np.ndarray, "..."]]:
    """The arrays of one network, given by Flax path, by the names that PEFT has for them."""
    named = {name: network[path] for path, name in peft.names.items()}
    return {name: np.ascontiguousarray(a.T if a.ndim == 2 else a, np.float32) for name, a in named.items()}


def write(network: Mapping[str, Float[np.ndarray, "..."]], where: Path, peft: Peft) -> None:
    """Writes one network into the new folder `where`."""
    where.mkdir()
    (where / MODEL).write_bytes(safetensors.numpy.save(arrays(network, peft), {"format": "pt"}))
    (where / CONFIG).write_text(json.dumps(peft.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
