"""The weights of Keras 3: .weights.h5, and .keras, which is a zip archive with such a file.

HDF5 is read in a process of its own with limits (`hdf5_child`), a third of a second for each file. Of a .keras nothing
else is read: its config.json says which classes to build, which are code. Names are those of the file, such as
layers/dense/vars/0; what belongs to the optimizer is left out.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pdiff.errors import PdiffError
from pdiff.imports.reading import (
    BFLOAT16,
    HEADER_BYTES,
    MOST_LEAVES,
    ZIP,
    ZIP_STUMBLES,
    Arrays,
    Budget,
    File,
    byte_count,
    damaged,
    filled,
    parse_json,
    shown,
    size_of,
    unread,
)

CHILD = Path(__file__).with_name("hdf5_child.py")
MEMBER = "model.weights.h5"  # of a .keras
OPTIMIZER = ("optimizer/", "optimizer_weights/")  # the second of Keras 2
SECONDS = 120  # most that a file may take


def read_h5(path: Path, budget: Budget) -> File:
    """The datasets of an HDF5 file."""
    size_of(path)
    with open(path, "rb") as f:
        return _without_optimizer(_datasets(f, budget))


def read_keras(path: Path, budget: Budget) -> File:
    """The weights of a model that Keras saved as a whole."""
    size_of(path)
    with damaged(".keras", *ZIP_STUMBLES), open(path, "rb") as f, tempfile.TemporaryFile() as weights:
        if f.read(len(ZIP)) != ZIP:
            raise PdiffError("is damaged or no .keras: it does not begin as a zip archive")
        with zipfile.ZipFile(f) as archive:
            if len(archive.infolist()) > MOST_LEAVES or archive.namelist().count(MEMBER) != 1:
                raise PdiffError(f"does not hold {MEMBER} once; allowed: what model.save of Keras 3 writes")
            budget.check(archive.getinfo(MEMBER).file_size)
            with archive.open(MEMBER) as member:
                shutil.copyfileobj(member, weights)
        weights.flush()
        weights.seek(0)
        return _without_optimizer(_datasets(weights, budget))


def _without_optimizer(arrays: Arrays) -> File:
    kept = {n: a for n, a in arrays.items() if not n.startswith(OPTIMIZER)}
    left = len(arrays) - len(kept)
    return File(kept, {}, (f"what belongs to the optimizer is left out ({left} arrays)",) if left else ())


def _datasets(file: BinaryIO, budget: Budget) -> Arrays:
    """What the process that is given the open file says it holds."""
    command = [sys.executable, "-P", str(CHILD), str(budget.left), str(SECONDS)]
    quiet = os.environ | {"HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=quiet)
    alarm = threading.Timer(2 * SECONDS, child.kill)
    alarm.start()
    try:
        line = child.stdout.readline(HEADER_BYTES)
        if not line.endswith(b"\n"):
            child.kill()
            raise PdiffError(f"is damaged: HDF5's library ended over it with code {child.wait()}")
        answer = parse_json(line)
        if "error" in answer:
            if answer["error"].startswith("says that it holds"):
                budget.check(budget.left + 1)
            raise PdiffError(answer["error"])
        return {name: _array(child.stdout, dtype, shape, budget) for name, dtype, shape in answer["arrays"]}
    finally:
        alarm.cancel()
        child.kill()
        child.wait()
        child.stdout.close()


def _array(f: Any, dtype: str, shape: list[int], budget: Budget) -> np.ndarray:
    if dtype.startswith("!"):
        return unread(dtype[1:])
    kind = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    if kind.hasobject or not kind.itemsize:
        raise PdiffError(f"is damaged: HDF5's library says {shown(dtype)}")
    size = byte_count(shape, kind.itemsize)
    budget.take(size)
    return filled(f, size, kind, shape)
