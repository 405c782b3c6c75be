"""results.json, the contract that tools read: writing and reading it.

Accuracies are fractions in [0, 1]. A split or a control that does not apply is absent, never null or zero.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from pdiff.config.fields import RIVALS
from pdiff.errors import PdiffError
from pdiff.system import files

# Every control, in the order in which it is shown.
CONTROLS = ("hypernetwork", "soup", "gaussian", "noise", "nearest_seen", "ridge", *RIVALS)
CONTROLS += ("linear_interpolation", "rebasin_merge", "task_blind", "wrong_task", "shuffled_text", "majority")
# Merges of imported networks, which stand beside held-out tasks alone; `svd` is the mean's. See `controls.merged`.
MERGED = ("merged_mean", "merged_svd")
MERGED += tuple(f"merged_{n}{end}" for n in ("ties", "dare", "lerp", "slerp") for end in ("", "_svd"))
OF_TEXTS = ("cosine", "joined_head", "conditioned")  # where the inputs are texts
CONTROLS += OF_TEXTS
SPLITS = ("seen", "interp", "unseen", "unheard", "validation")


def summary(values: Float[np.ndarray, "..."], groups: Shaped[np.ndarray, "..."] | None = None) -> dict:
    """Mean, standard error, extremes and count of `values`.

    Args:
      groups: the task of each value. Networks of one task are not independent, so the standard error is
        then that of the tasks' means. With a single group it is taken over the values.

    Returns:
      {"mean", "sem", "min", "max", "n"}; `sem` of a single value is 0.
    """
    values = np.asarray(values, np.float64).reshape(-1)
    if not len(values):
        raise ValueError("a summary needs at least one value")
    independent = values
    if groups is not None:
        _, index = np.unique(np.asarray(groups).reshape(-1), return_inverse=True)
        if len(index) != len(values):
            raise ValueError(f"{len(values)} values, but {len(index)} groups; give the group of each value")
        if index.max() > 0:
            independent = np.bincount(index, values) / np.bincount(index)
    count = len(independent)
    return {
        "mean": float(values.mean()),
        "sem": float(independent.std(ddof=1) / math.sqrt(count)) if count > 1 else 0.0,
        "min": float(values.min()),
        "max": float(values.max()),
        "n": len(values),
    }


def write(path: Path, results: dict) -> None:
    """Writes `results` whole or not at all, keys sorted, so that equal results are equal bytes.

    Raises:
      PdiffError: a value is NaN or infinite; its place is named.
    """
    for where, value in leaves(results):
        if isinstance(value, (float, np.floating)) and not math.isfinite(value):
            raise PdiffError(f"{path}: {where} is {value}; allowed: finite numbers")
    files.write_json(path, results, _plain)


def read(path: Path) -> dict:
    """The results in `path`.

    Raises:
      PdiffError: the file is missing, damaged, or was edited.
    """
    return files.read_json(path, "--mode=evaluate writes it again")


def leaves(tree: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a dict or a list, with its place, as in `splits.seen.per_task[3].base`."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, (list, tuple, np.ndarray)):
        for i, value in enumerate(tree):
            yield from leaves(value, f"{where}[{i}]")
    else:
        yield where, tree


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no place in results.json")
