"""A row for each network of a folder, from a CSV or JSON manifest or from the names of folders.

A CSV manifest has the columns `file`, `task`, `description` (as often as there are wordings), `factor:NAME`,
`accuracy` and `split`; a JSON one is a list of objects with these keys, or `{"networks": [...]}`, in which
`description` may be a list and `factors` an object. Only `file` is required; what one row of a task has, the others may
leave blank. A file in the folder of an adapter stands for the folder; FILE.npy#ROW is a row of an array of networks.
"""

import dataclasses
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from pdiff.errors import Faults, PdiffError
from pdiff.imports import arrays, folders, links, tables
from pdiff.imports.arrays import shown
from pdiff.imports.folders import LONGEST_TEXT, MOST_ROWS, MOST_WORDINGS, Listing, Row, words
from pdiff.imports.tables import FACTOR
from pdiff.tasks.base import SPLITS

NAMES = ("manifest.csv", "manifest.json")
MOST_FACTORS = 32


def rows(source: Path, manifest: Path | None) -> Listing:
    """A row for each network of the folder `source`, by its manifest if it has one, else by its folders.

    Raises:
      Faults: what is wrong with the manifest, or with the files that lie there.
    """
    if not source.is_dir():
        raise PdiffError(f"--source: {source} is no folder; allowed: a folder of networks; see docs/importing.md")
    if links.is_repository(source):
        raise PdiffError(f"--source: {source} is a repository of a cache; allowed: {links.opened(source)}")
    manifests = [source / n for n in NAMES if (source / n).is_file()]
    if manifest is None and len(manifests) > 1:
        raise PdiffError(f"--source: {source} has both {' and '.join(NAMES)}; name one of them with --manifest")
    path = manifest or next(iter(manifests), None)
    if path is None:
        return folders.by_folders(source)
    if not path.is_file():
        raise PdiffError(f"--manifest: {path} is no file; allowed: a CSV or JSON file")
    try:
        return _placed(source, parse(arrays.text(path), path.suffix.lower()))
    except Faults as e:
        raise Faults(str(path), e.lines) from e
    except PdiffError as e:
        raise PdiffError(f"{path}: {e}") from e


def parse(content: str, ending: str) -> Listing:
    """The rows of a manifest's text; `ending` is '.csv' or '.json'.

    Raises:
      PdiffError: it is no such text, or (Faults) some rows are wrong. Messages do not name the file.
    """
    table = tables.parse(content, ending)
    if not 0 < len(table.records) <= MOST_ROWS:
        raise PdiffError(f"has {len(table.records) or 'no'} rows; allowed: at most {MOST_ROWS}")
    networks, faults = [], []
    accuracies, note = _accuracies(table.records, faults)
    for line, record in table.records:
        try:
            networks.append(_row(line, record, accuracies.get(line)))
        except PdiffError as e:
            faults.append(f"{line}: {e}")
    return Listing(_once(networks, faults), (*table.notes, *note))


def _placed(source: Path, listing: Listing) -> Listing:
    """The rows with each network named as it lies in `source`."""
    networks, faults, left = [], [], defaultdict(list)
    for row in listing.rows:
        try:
            networks.append(dataclasses.replace(row, file=folders.placed(source, row.file, left)))
        except (PdiffError, OSError) as e:
            faults.append(f"{row.line}: {e}")
    return Listing(_once(networks, faults), (*listing.notes, *folders.told(left)))


def _once(networks: list[Row], faults: list[str]) -> list[Row]:
    """The networks, unless two rows are of one, or there are other faults."""
    lines: dict[str, str] = {}
    for row in networks:
        if (first := lines.setdefault(row.file, row.line)) != row.line:
            faults.append(f"{row.line}: file {shown(row.file)} is also that of {first}")
    if faults:
        raise Faults("manifest", faults)
    return networks


def _row(line: str, record: dict[str, Any], accuracy: float | None) -> Row:
    wordings = [words("description", d) for d in record["description"] if not isinstance(d, str) or d.strip()]
    factors = {n.removeprefix(FACTOR): _number(n, v) for n, v in record.items() if n.startswith(FACTOR)}
    if len(wordings) > MOST_WORDINGS or len(factors) > MOST_FACTORS:
        allowed = f"at most {MOST_WORDINGS}, {MOST_FACTORS}"
        raise PdiffError(f"{len(wordings)} descriptions, {len(factors)} factors; allowed: {allowed}")
    if any(not n.isprintable() or len(n) > 60 for n in factors):
        raise PdiffError(f"factors named {shown(sorted(factors))}; allowed: at most 60 printable characters each")
    split = record.get("split", "")
    if split and split not in SPLITS:
        raise PdiffError(f"split {shown(split)}; allowed: {', '.join(SPLITS)}, or nothing")
    task = words("task", record["task"]) if "task" in record else ""
    return Row(_file(record.get("file")), task, tuple(dict.fromkeys(wordings)), factors, accuracy, split, line)


def _accuracies(records: list[tuple[str, dict]], faults: list[str]) -> tuple[dict[str, float], tuple[str, ...]]:
    """The accuracies as fractions, by line, and a line if they were per cent without saying so.

    They are per cent if all have its sign, or if none has and all are above 1 or 0, but not all of them 0.

    Raises:
      PdiffError: some are per cent and others are not.
    """
    numbers: dict[str, float] = {}
    signed = {}
    for line, record in records:
        if "accuracy" in record:
            value = record["accuracy"]
            signed[line] = isinstance(value, str) and value.rstrip().endswith("%")
            try:
                numbers[line] = _number("accuracy", value.rstrip().removesuffix("%") if signed[line] else value)
                if not 0 <= numbers[line] <= 100:
                    raise PdiffError(f"accuracy {shown(value)}; allowed: from 0 to 1, or from 0 to 100 per cent")
            except PdiffError as e:
                faults.append(f"{line}: {e}")
    with_sign = [line for line in numbers if signed[line]]
    above = with_sign or [line for line, number in numbers.items() if number > 1]
    others = [n for n, v in numbers.items() if (not signed[n] if with_sign else 0 < v <= 1)]
    if above and others:
        values = dict(records)
        pair = " and ".join(f"{shown(values[line]['accuracy'])} in {line}" for line in (above[0], others[0]))
        raise PdiffError(f"accuracy {pair}; allowed: all from 0 to 1, or all in per cent")
    if not above:
        return numbers, ()
    said = f"accuracy is taken as per cent, as it goes up to {max(numbers.values()):g}"
    return {n: v / 100 for n, v in numbers.items()}, () if with_sign else (said,)


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not abs(number) < 1e30:  # float32 holds it, and its square's root
        raise PdiffError(f"{name} {shown(value)}; allowed: a number below 1e30 in size")
    return number


def _file(value: Any) -> str:
    """A path below the source, which names nothing above it. Backslashes separate, as on Windows."""
    if not isinstance(value, str) or not value.strip():
        raise PdiffError("file is missing; allowed: a path below the source")
    text = value.strip().replace("\\", "/")
    path = Path(text)
    if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:/", text) or not text.isprintable():
        raise PdiffError(f"file {shown(value)}; allowed: a path below the source, without '..'")
    if len(value) > LONGEST_TEXT or not path.parts:
        raise PdiffError(f"file {shown(value)}; allowed: a path of a network below the source")
    return str(path)
