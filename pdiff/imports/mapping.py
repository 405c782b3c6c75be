"""layout.json: how the arrays of another library's networks become those of a Flax tree.

    {"leaves": [{"from": "net.0.weight", "to": "params/Dense_0/kernel", "transform": "transpose"},
                {"from": "blocks.*.norm.weight", "to": "params/block_*/LayerNorm_0/scale"}],
     "ignore": ["*.num_batches_tracked"]}

Names are literal but for `*`, which stands for any characters of one part between dots; the n-th `*` of `to` takes what
the n-th of `from` stood for. Each part holds at most one, so matching takes time in proportion to the name. An ignore
rule that begins with `*.` or `*/` ignores what ends so, however many parts stand before it. Exactly one rule has to
place each array unless some ignore it, and no two arrays go to one place. Without `leaves`, all that is not ignored
keeps its name. What is ignored may be of any dtype.
"""

import dataclasses
import functools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from pdiff.errors import PdiffError
from pdiff.imports import arrays
from pdiff.imports.arrays import Arrays, shown

NAME = "layout.json"
MOST_RULES, MOST_STARRED = 10_000, 200
# name: the order of the axes there, as positions of those here. PyTorch's linear weights are (outputs, inputs), its
# convolutions' (outputs, inputs, *window); Flax has (inputs, outputs) and (*window, inputs, outputs).
TRANSFORMS: dict[str, tuple[int, ...]] = {
    "none": (),
    "transpose": (1, 0),
    "conv1d": (2, 1, 0),
    "conv2d": (2, 3, 1, 0),
    "conv3d": (2, 3, 4, 1, 0),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where arrays with such a name go, and how their axes are ordered there."""

    source: str
    target: str
    transform: str = "none"


@dataclasses.dataclass(frozen=True)
class Layout:
    """The rules of a layout.json; without `leaves` names are kept."""

    leaves: tuple[Rule, ...] | None
    ignore: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Place:
    """What a path of the tree was called, and how it was ordered."""

    name: str
    transform: str = "none"


def read(path: Path) -> Layout:
    """The rules of a layout.json.

    Raises:
      PdiffError: names the file and the rule that is wrong.
    """
    try:
        return parse(arrays.json_of(path))
    except PdiffError as e:
        raise PdiffError(f"{path}: {e}") from e


def parse(layout: Any) -> Layout:
    """The rules of a JSON value; raises PdiffError as `read` does."""
    if not isinstance(layout, dict) or not layout or set(layout) - {"leaves", "ignore"}:
        raise PdiffError("is no layout; allowed: an object with leaves, ignore or both, each a list")
    leaves, ignored = layout.get("leaves", []), layout.get("ignore", [])
    if not isinstance(leaves, list) or not isinstance(ignored, list) or len(leaves) + len(ignored) > MOST_RULES:
        raise PdiffError(f"leaves and ignore: allowed: lists; of both together at most {MOST_RULES} rules")
    rules = tuple(_rule(i, r) for i, r in enumerate(leaves))
    ignore = tuple(_pattern("ignore", n) for n in ignored)
    sources = [*(r.source for r in rules), *ignore]
    for source, count in Counter(sources).most_common(1):
        if count > 1:
            raise PdiffError(f"{shown(source)} has {count} rules; allowed: one")
    if sum("*" in source for source in sources) > MOST_STARRED:
        raise PdiffError(f"has more than {MOST_STARRED} rules with '*'; allowed: at most as many")
    return Layout(rules if "leaves" in layout else None, ignore)


def apply(rules: Layout, leaves: Arrays) -> tuple[Arrays, dict[str, Place]]:
    """The arrays by their paths in the Flax tree, and what each was called.

    Raises:
      PdiffError: an array has no rule or two, a rule no array, two go to one place, axes do not fit, or all arrays are
        ignored.
    """
    places = _places(rules, tuple(leaves))
    if not places:
        raise PdiffError(f"has only arrays that {NAME} ignores; allowed: some that it does not")
    tree = {path: transformed(leaves[p.name], p.transform, p.name) for path, p in places.items()}
    arrays.check_names(tree)
    return dict(sorted(tree.items())), places


def ignoring(name: str) -> str:
    """A rule of `ignore` that fits an array, and others of that end: the same counter of each layer."""
    separator = "." if "." in name else "/"
    *before, last = name.split(separator)
    return f"*{separator}{last}" if before and "*" not in last else name


@functools.lru_cache(8)  # the networks of an import have the same names
def _places(rules: Layout, names: tuple[str, ...]) -> dict[str, Place]:
    places: dict[str, Place] = {}
    literal = {r.source: r for r in rules.leaves or () if "*" not in r.source}
    starred = [r for r in rules.leaves or () if "*" in r.source]
    unused = {*(r.source for r in rules.leaves or ()), *rules.ignore}
    for name in names:
        matches = [(rule, stars) for rule in starred if (stars := _match(rule.source, name)) is not None]
        matches += [(literal[name], ())] if name in literal else []
        ignored = [pattern for pattern in rules.ignore if pattern == name or _ignores(pattern, name)]
        unused -= {*(rule.source for rule, _ in matches), *ignored}
        if ignored and not matches:
            continue
        if rules.leaves is None:
            places[name] = Place(name)
            continue
        if ignored or len(matches) != 1:
            rivals = ", ".join(map(shown, [*(rule.source for rule, _ in matches), *ignored][:3])) or "none"
            count = len(matches) + len(ignored)
            raise PdiffError(f"{shown(name)} has {count} rules in {NAME} ({rivals}); allowed: one")
        rule, stars = matches[0]
        path = _filled(rule.target, stars)
        if path in places:
            raise PdiffError(f"{shown(name)} and {shown(places[path].name)} both go to {shown(path)}; allowed: one")
        places[path] = Place(name, rule.transform)
    if unused:
        raise PdiffError(f"has nothing for the rule {shown(min(unused))} of {NAME}")
    return places


def transformed(value: Shaped[np.ndarray, "..."], transform: str, name: str) -> Shaped[np.ndarray, "..."]:
    """`value` with its axes in the order of Flax."""
    order = TRANSFORMS[transform]
    if order and value.ndim != len(order):
        raise PdiffError(f"{shown(name)} has shape {value.shape}; {transform} is for {len(order)} axes")
    return value.transpose(order) if order else value


def inverse(value: Shaped[np.ndarray, "..."], transform: str) -> Shaped[np.ndarray, "..."]:
    """`value` with its axes as they came."""
    order = TRANSFORMS[transform]
    return value.transpose(tuple(np.argsort(order))) if order else value


def _rule(i: int, entry: Any) -> Rule:
    where = f"leaves[{i}]"
    if not isinstance(entry, dict) or not {"from", "to"} <= set(entry) <= {"from", "to", "transform"}:
        raise PdiffError(f"{where}: {shown(entry)}; allowed: an object with from, to and perhaps transform")
    source, target = _pattern(f"{where}.from", entry["from"]), _pattern(f"{where}.to", entry["to"], "/")
    transform = entry.get("transform", "none")
    if not isinstance(transform, str) or transform not in TRANSFORMS:
        raise PdiffError(f"{where}.transform: {shown(transform)}; allowed: {', '.join(TRANSFORMS)}")
    if source.count("*") != target.count("*"):
        raise PdiffError(f"{where}: {shown(source)} and {shown(target)} have not as many '*'; allowed: as many")
    return Rule(source, target, transform)


def _pattern(where: str, name: Any, separator: str = ".") -> str:
    if not isinstance(name, str) or not name or len(name) > arrays.LONGEST_NAME or not name.isprintable():
        raise PdiffError(f"{where}: {shown(name)}; allowed: a name of at most {arrays.LONGEST_NAME} characters")
    if any(part.count("*") > 1 for part in name.split(separator)):
        raise PdiffError(f"{where}: {shown(name)}; allowed: at most one '*' in each part between '{separator}'")
    return name


def _match(pattern: str, name: str) -> tuple[str, ...] | None:
    """What the stars of `pattern` stand for in `name`; None where it does not fit."""
    match = re.fullmatch(re.escape(pattern).replace(r"\*", "([^.]+)"), name)
    return match and match.groups()


def _ignores(pattern: str, name: str) -> bool:
    """Whether an ignore rule with stars fits `name`, or, where it begins with '*.' or '*/', an end of it."""
    if pattern[:2] not in ("*.", "*/"):
        return "*" in pattern and _match(pattern, name) is not None
    separator, rest = pattern[1], pattern[2:]
    if "*" not in rest:
        return len(name) > len(rest) + 1 and name.endswith(separator + rest)
    ends = (name[i + 1 :] for i, c in enumerate(name) if c == separator and i > 0)
    return any(_match(rest, end) is not None for end in ends)


def _filled(target: str, stars: tuple[str, ...]) -> str:
    texts = iter(stars)
    return re.sub(r"\*", lambda _: next(texts), target)
