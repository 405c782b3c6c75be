"""A row for each network of a folder, from a CSV or JSON manifest or from the names of folders.

A CSV manifest has the columns `file`, `task`, `description` (as often as there are wordings), `factor:NAME`,
`accuracy` and `split`; a JSON one is a list of objects with these keys, or `{"networks": [...]}`, in which
`description` may be a list and `factors` an object. Only `file` is required; what one row of a task has, the others may
leave blank.
"""

import csv
import dataclasses
import io
import math
from pathlib import Path
from typing import Any

from pdiff.errors import Faults, PdiffError
from pdiff.imports import arrays, lora
from pdiff.imports.arrays import shown
from pdiff.system import files
from pdiff.tasks.base import SPLITS

NAMES = ("manifest.csv", "manifest.json")
DESCRIPTION = "description.txt"
COLUMNS = ("file", "task", "description", "factor:NAME", "accuracy", "split")
FACTOR = "factor:"
MOST_ROWS, MOST_FACTORS, MOST_WORDINGS = 100_000, 32, 32
LONGEST_TEXT = 1000
DEEPEST = 3  # folders below the source: a task, a seed of it, the network itself


@dataclasses.dataclass(frozen=True)
class Row:
    """One network: its path below the source, and its entries; an absent one is '', (), {} or None."""

    file: str
    task: str = ""
    descriptions: tuple[str, ...] = ()
    factors: dict[str, float] = dataclasses.field(default_factory=dict)
    accuracy: float | None = None
    split: str = ""
    line: str = ""  # of the manifest, for messages


def rows(source: Path, manifest: Path | None) -> list[Row]:
    """A row for each network of the folder `source`, by its manifest if it has one, else by its folders.

    Raises:
      Faults: what is wrong with the manifest, or with the files that lie there.
    """
    if not source.is_dir():
        raise PdiffError(f"--source: {source} is no folder; allowed: a folder of networks; see docs/importing.md")
    manifests = [source / n for n in NAMES if (source / n).is_file()]
    if manifest is None and len(manifests) > 1:
        raise PdiffError(f"--source: {source} has both {' and '.join(NAMES)}; name one of them with --manifest")
    path = manifest or next(iter(manifests), None)
    if path is None:
        return _by_folders(source)
    if not path.is_file():
        raise PdiffError(f"--manifest: {path} is no file; allowed: a CSV or JSON file")
    try:
        return parse(arrays.text(path), path.suffix.lower())
    except Faults as e:
        raise Faults(str(path), e.lines) from e
    except PdiffError as e:
        raise PdiffError(f"{path}: {e}") from e


def parse(content: str, ending: str) -> list[Row]:
    """The rows of a manifest's text; `ending` is '.csv' or '.json'.

    Raises:
      PdiffError: it is no such text, or (Faults) some rows are wrong. Messages do not name the file.
    """
    if ending not in (".csv", ".json"):
        raise PdiffError(f"ends in {shown(ending)}; allowed: .csv, .json")
    records = _csv_records(content) if ending == ".csv" else _json_records(content)
    if not records:
        raise PdiffError("has no rows")
    if len(records) > MOST_ROWS:
        raise PdiffError(f"has {len(records)} rows; allowed: at most {MOST_ROWS}")
    networks, faults = [], []
    for line, record in records:
        try:
            networks.append(_row(line, record))
        except PdiffError as e:
            faults.append(f"{line}: {e}")
    lines: dict[str, str] = {}
    for row in networks:
        if (first := lines.setdefault(row.file, row.line)) != row.line:
            faults.append(f"{row.line}: file {shown(row.file)} is also that of {first}")
    if faults:
        raise Faults("manifest", faults)
    return networks


def _csv_records(content: str) -> list[tuple[str, dict[str, Any]]]:
    if "\0" in content:
        raise PdiffError("holds NUL characters, which no CSV text has")
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    records: list[tuple[str, dict[str, Any]]] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if header:
            _check_columns(header)
        for cells in reader:
            if not any(c.strip() for c in cells):
                continue
            if len(cells) != len(header):
                allowed = f"allowed: {len(header)}, as the first line"
                raise PdiffError(f"line {reader.line_num}: {len(cells)} cells; {allowed}")
            record: dict[str, Any] = {"description": []}
            for name, cell in zip(header, cells, strict=True):
                if name == "description":
                    record[name].append(cell)
                elif cell.strip():
                    record[name] = cell.strip()
            records.append((f"line {reader.line_num}", record))
    except csv.Error as e:
        raise PdiffError(f"line {reader.line_num}: no CSV: {e}") from e
    return records


def _is_column(name: str) -> bool:
    return name in COLUMNS or name.startswith(FACTOR) and name != FACTOR


def _check_columns(header: list[str]) -> None:
    for name in header:
        if not _is_column(name):
            raise PdiffError(f"line 1: column {shown(name)}; allowed: {', '.join(COLUMNS)}, separated by commas")
        if name != "description" and header.count(name) > 1:
            raise PdiffError(f"line 1: column {shown(name)} comes twice; allowed twice: description")


def _json_records(content: str) -> list[tuple[str, dict[str, Any]]]:
    networks = arrays.parse_json(content)
    if isinstance(networks, dict):
        if set(networks) != {"networks"}:
            raise PdiffError(f"has the keys {shown(sorted(networks)[:5])}; allowed: networks, a list of objects")
        networks = networks["networks"]
    if not isinstance(networks, list) or not all(isinstance(r, dict) for r in networks):
        raise PdiffError("is no list of objects")
    records = []
    for i, record in enumerate(networks):
        factors = record.pop("factors", {})
        if isinstance(factors, dict):
            record |= {f"{FACTOR}{n}": v for n, v in factors.items()}
        else:
            record[FACTOR] = factors  # refused, as no column of its own
        wordings = record.get("description", [])
        record["description"] = wordings if isinstance(wordings, list) else [wordings]
        records.append((f"network {i}", {n: v for n, v in record.items() if v is not None}))
    return records


def _row(line: str, record: dict[str, Any]) -> Row:
    for name in record:
        if not _is_column(name):
            raise PdiffError(f"{shown(name)}; allowed: {', '.join(COLUMNS)}")
    wordings = [_words("description", d) for d in record["description"] if not isinstance(d, str) or d.strip()]
    factors = {n.removeprefix(FACTOR).strip(): _number(n, v) for n, v in record.items() if n.startswith(FACTOR)}
    if len(wordings) > MOST_WORDINGS or len(factors) > MOST_FACTORS:
        allowed = f"at most {MOST_WORDINGS}, {MOST_FACTORS}"
        raise PdiffError(f"{len(wordings)} descriptions, {len(factors)} factors; allowed: {allowed}")
    if any(not n or not n.isprintable() or len(n) > 60 for n in factors):
        raise PdiffError(f"factors named {shown(sorted(factors))}; allowed: at most 60 printable characters each")
    accuracy = _number("accuracy", record["accuracy"]) if "accuracy" in record else None
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise PdiffError(f"accuracy {accuracy:g}; allowed: a fraction from 0 to 1")
    split = record.get("split", "")
    if split and split not in SPLITS:
        raise PdiffError(f"split {shown(split)}; allowed: {', '.join(SPLITS)}, or nothing")
    task = _words("task", record["task"]) if "task" in record else ""
    return Row(_file(record.get("file")), task, tuple(dict.fromkeys(wordings)), factors, accuracy, split, line)


def _words(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.strip().isprintable() or len(value) > LONGEST_TEXT:
        raise PdiffError(f"{name} {shown(value)}; allowed: a text of at most {LONGEST_TEXT} printable characters")
    return value.strip()


def _number(name: str, value: Any) -> float:
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not abs(number) < 1e30:  # float32 holds it, and its square's root
        raise PdiffError(f"{name} {shown(value)}; allowed: a number below 1e30 in size")
    return number


def _file(value: Any) -> str:
    """A path below the source, which names nothing above it."""
    if not isinstance(value, str) or not value.strip():
        raise PdiffError("file is missing; allowed: a path below the source")
    path = Path(value.strip())
    if path.is_absolute() or ".." in path.parts or "\\" in value or not value.strip().isprintable():
        raise PdiffError(f"file {shown(value)}; allowed: a path below the source, without '..'")
    if len(value) > LONGEST_TEXT or not path.parts:
        raise PdiffError(f"file {shown(value)}; allowed: a path of a network below the source")
    return str(path)


def _by_folders(source: Path) -> list[Row]:
    """Each entry of `source` is a task: a network by itself, or a folder of its networks and of their seeds."""
    networks: list[Row] = []
    faults: list[str] = []
    for entry in _entries(source):
        try:
            if is_network(entry):
                task = entry.name if entry.is_dir() else entry.stem
                networks.append(Row(entry.name, task, _wordings(entry) if entry.is_dir() else ()))
            elif entry.is_dir():
                paths = _networks_below(entry, 1)
                if not paths:
                    raise PdiffError("holds no network; allowed: safetensors, .npz, .msgpack, Orbax or PEFT LoRA")
                wordings = _wordings(entry)
                networks += [Row(str(p.relative_to(source)), entry.name, wordings) for p in paths]
            elif entry.suffix.lower() in arrays.PICKLES:
                raise PdiffError(arrays.refusal(entry))
        except (PdiffError, OSError) as e:
            faults.append(f"{entry.name}: {e}")
    if faults:
        raise Faults(str(source), faults)
    if not networks:
        raise PdiffError(f"{source}: holds no networks; see docs/importing.md for how they may lie there")
    return networks


def is_network(path: Path) -> bool:
    """Whether `path` is one network: a file or checkpoint that is read, or a folder with an adapter."""
    return lora.is_adapter(path) or arrays.kind_of(path) is not None


def _networks_below(folder: Path, depth: int) -> list[Path]:
    networks = []
    for entry in _entries(folder):
        if is_network(entry):
            networks.append(entry)
        elif entry.is_dir() and depth < DEEPEST:
            networks += _networks_below(entry, depth + 1)
        elif entry.is_file() and entry.suffix.lower() in arrays.PICKLES:
            raise PdiffError(f"{entry.name} {arrays.refusal(entry)}")
    return networks


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, but for what belongs to the source as a whole or is hidden, as `base.safetensors` is."""
    beside = (files.SUMS, "pdiff.json")  # as pdiff leaves them beside networks that it makes
    entries = (p for p in folder.iterdir() if p.name not in beside and p.suffix != f".{files.DIGEST}")
    return sorted(p for p in entries if not p.name.startswith(".") and p.stem != "base")


def _wordings(folder: Path) -> tuple[str, ...]:
    """The lines of a folder's description.txt, if it has one."""
    path = folder / DESCRIPTION
    if not path.exists():
        return ()
    try:
        lines = [_words("line", line) for line in arrays.text(path).splitlines() if line.strip()]
    except PdiffError as e:
        raise PdiffError(f"{DESCRIPTION} {e}") from e
    if not 0 < len(lines) <= MOST_WORDINGS:
        raise PdiffError(f"{DESCRIPTION} has {len(lines)} lines; allowed: 1 to {MOST_WORDINGS}, a wording on each")
    return tuple(dict.fromkeys(lines))
