"""The fields of the page's requests: JSON in, what the generator is asked out, or one line that says what is wrong."""

import sys
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pdiff.ask.api import LoadedGenerator
from pdiff.ask.overview import ranges
from pdiff.ask.request import Request, one_of
from pdiff.errors import PdiffError
from pdiff.tasks.base import Family

MOST_NETWORKS = 16  # of one request
MOST_EXAMPLES = 64  # labelled images that a network is adapted to
MOST_DRAWN = 2048  # networks that the one to adapt is chosen from
MOST_SEED = 2**31 - 1
MOST_NAMES = 12  # of classes in an error message


def of_sample(request: dict, loaded: LoadedGenerator) -> Request:
    """What is asked for by one of `prompt`, `task` (a name) and `factors`, which become a prompt.

    Raises:
      PdiffError: a field is missing, unknown, of another type or out of range.
    """
    given = _read(request, {"prompt": str, "task": str, "factors": list}, 4, MOST_NETWORKS)
    ways = {name: given.pop(name) for name in ("prompt", "task", "factors")}
    one_of(ways, "got {given}; give one of prompt, task, factors", "no request")
    prompt = ways["prompt"] if ways["factors"] is None else _described(ways["factors"], loaded)
    return Request(prompt, ways["task"], **given)


def of_adapt(
    request: dict, loaded: LoadedGenerator
) -> tuple[Float[np.ndarray, "images features"], Int[np.ndarray, " images"], dict[str, Any]]:
    """Images, their labels, and other arguments of `LoadedGenerator.adapt`.

    Raises:
      PdiffError: as `of_sample`; or there are too few or too many images, or not a label for each.
    """
    most, classes = min(loaded.config.adapt.num_samples, MOST_DRAWN), loaded.family.classes
    given = _read(request, {"images": list, "labels": list, "prompt": str}, most, MOST_DRAWN)
    images, labels = given.pop("images") or [], given.pop("labels") or []
    if not 1 <= len(images) <= MOST_EXAMPLES:
        raise PdiffError(f"images: got {len(images)}; allowed: 2 to {MOST_EXAMPLES}, each with its label")
    if len(labels) != len(images):
        raise PdiffError(f"labels: got {len(labels)} for {len(images)} images; allowed: one for each image")
    sizes = [f"{len(p)} values" if isinstance(p, list) else f"a {type(p).__name__}" for p in images]
    x = [image(p, loaded.family, f"images: got {sizes[i]} for image {i}") for i, p in enumerate(images)]
    indices = [_class(label, classes) for label in labels]
    if None in indices:
        got, more = str(labels[indices.index(None)])[:40], ", …" if len(classes) > MOST_NAMES else ""
        names = f"{', '.join(classes[:MOST_NAMES])}{more}, or a whole number from 0 to {len(classes) - 1}"
        raise PdiffError(f"labels: got {got!r}; allowed: {names}")
    return np.stack(x), np.array(indices, np.int32), given


def image(pixels: Any, family: Family, refusal: str = "pixels: got something else") -> Float[np.ndarray, " features"]:
    """One image of a family; `refusal` begins what the PdiffError for anything else says."""
    right = isinstance(pixels, list) and len(pixels) == family.features
    if not right or not all(_is_number(p) and 0 <= p <= 1 for p in pixels):
        raise PdiffError(f"{refusal}; allowed: a list of {family.features} numbers from 0 to 1")
    return np.array(pixels, np.float32)


def _read(request: dict, kinds: dict[str, type], usual: int, most: int) -> dict[str, Any]:
    """The fields of these kinds, None where they are missing, and those that every request may have."""
    kinds = kinds | {"num_samples": int, "seed": int, "force": bool}
    for name, value in request.items():
        if name not in kinds:
            raise PdiffError(f"{str(name)[:40]!r}: unknown field; allowed: {', '.join(kinds)}")
        if not isinstance(value, kinds[name]) or (isinstance(value, bool) and kinds[name] is not bool):
            raise PdiffError(f"{name}: got a {type(value).__name__}; allowed: a {kinds[name].__name__}")
    given = dict.fromkeys(kinds) | {"num_samples": usual, "seed": 0, "force": False} | request
    for name, low, high in (("num_samples", 1, most), ("seed", 0, MOST_SEED)):
        if not low <= given[name] <= high:
            raise PdiffError(f"{name}: got {given[name]}; allowed: {low} to {high}")
    return given


def _described(factors: list, loaded: LoadedGenerator) -> str:
    """The description of a task with these factors."""
    family, names = loaded.family, loaded.family.factor_names
    if not names or family.describe is None or not loaded.reads_prompts:
        raise PdiffError("factors: this generator cannot be asked by factors; give a task")
    if len(factors) != len(names) or not all(_is_number(f) for f in factors):
        raise PdiffError(f"factors: got {str(factors)[:80]}; allowed: {len(names)} numbers: {', '.join(names)}")
    for name, value, (low, high) in zip(names, factors, ranges(family), strict=True):
        if not low - 1e-6 <= value <= high + 1e-6:
            raise PdiffError(f"factors: got {value:g} for {name}; allowed: {low:g} to {high:g}")
    return family.describe(tuple(float(f) for f in factors))[0][0]


def _class(label: Any, classes: tuple[str, ...]) -> int | None:
    """The number of a class, by its name or its number; None if there is no such class."""
    if label in classes:
        return classes.index(label)
    whole = isinstance(label, int) and not isinstance(label, bool)
    return label if whole and 0 <= label < len(classes) else None


def _is_number(value: Any) -> bool:
    """A finite number that a float can hold, which JSON's whole numbers need not be."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
