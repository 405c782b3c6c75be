"""A manifest's text as records: CSV as people, spreadsheets and pandas write it, or JSON.

Of a CSV the header says which of ',', ';' or tab separates, and where ';' does, numbers may have a decimal comma. Case
and spaces of a column's name do not count, and a column that is not known is left alone.
"""

import csv
import dataclasses
import io
import re
from typing import Any

from pdiff.errors import PdiffError, some
from pdiff.imports import arrays
from pdiff.imports.arrays import shown

COLUMNS = ("file", "task", "description", "factor:NAME", "accuracy", "split")
FACTOR = "factor:"
SEPARATORS = ",;\t"
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?\s*%?", re.I)


@dataclasses.dataclass(frozen=True)
class Table:
    """What a manifest says.

    Attributes:
      records: for each network where it stands ('line 3'), and a value for each column that it has; `description` is
        a list, a factor's column 'factor:NAME'.
      notes: a line on what was left alone, or read otherwise than it was written.
    """

    records: list[tuple[str, dict[str, Any]]]
    notes: tuple[str, ...]


def parse(content: str, ending: str) -> Table:
    """The table in a text; `ending` is '.csv' or '.json'.

    Raises:
      PdiffError: it is no such text. The message does not name the file.
    """
    if ending not in (".csv", ".json"):
        raise PdiffError(f"ends in {shown(ending)}; allowed: .csv, .json")
    return _csv(content) if ending == ".csv" else _json(content)


def column(name: str) -> str | None:
    """The column that is meant, as in COLUMNS; None for one that is not known."""
    plain = name.strip()
    lower = plain.lower()
    if lower.startswith(FACTOR):
        return FACTOR + plain[len(FACTOR) :].strip() if plain[len(FACTOR) :].strip() else None
    if re.fullmatch(r"description\.\d+", lower):  # pandas numbers the columns of one name
        return "description"
    return lower if lower in COLUMNS else None


def _csv(content: str) -> Table:
    if "\0" in content:
        raise PdiffError("holds NUL characters, which no CSV text has")
    content = re.sub(r'\A"?sep=."?\r?$', "", content, count=1, flags=re.M | re.I)  # a first line of spreadsheets
    separator = _separator(content)
    reader = csv.reader(io.StringIO(content, newline=""), strict=True, delimiter=separator)
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any(c.strip() for c in cells):
                lines.append((reader.line_num, cells))
    except csv.Error as e:
        raise PdiffError(f"line {reader.line_num}: no CSV: {e}") from e
    if not lines:
        raise PdiffError("has no rows")
    (first, header), *lines = lines
    columns = [column(name) for name in header]
    _check_columns(first, header, columns)
    for line, cells in lines:
        if len(cells) != len(header):
            raise PdiffError(f"line {line}: {len(cells)} cells; allowed: {len(header)}, as in line {first}")
    notes = list(_unknown([n for n, c in zip(header, columns, strict=True) if c is None]))
    if separator == ";" and _decimal_points(columns, lines):
        notes.append("numbers have a decimal comma")
    records = []
    for line, cells in lines:
        record: dict[str, Any] = {"description": []}
        for name, cell in zip(columns, cells, strict=True):
            if name == "description":
                record[name].append(cell)
            elif name is not None and cell.strip():
                record[name] = cell.strip()
        records.append((f"line {line}", record))
    return Table(records, tuple(notes))


def _separator(content: str) -> str:
    """That by which the first line falls into columns of which one is `file`; ',' if there is none such."""
    header = next((line for line in io.StringIO(content, newline="") if line.strip(f" \r\n\"'{SEPARATORS}")), "")
    for separator in SEPARATORS:
        try:
            names = next(csv.reader([header], delimiter=separator), [])
        except csv.Error:  # told by line when all is read
            return separator
        if "file" in map(column, names):
            return separator
    return ","


def _check_columns(line: int, header: list[str], columns: list[str | None]) -> None:
    if "file" not in columns:
        allowed = f"{', '.join(COLUMNS)}, separated by commas, semicolons or tabs"
        raise PdiffError(f"line {line}: no column is 'file', of {some(map(shown, header), 8)}; allowed: {allowed}")
    for name in columns:
        if name not in (None, "description") and columns.count(name) > 1:
            raise PdiffError(f"line {line}: column {shown(name)} comes twice; allowed twice: description")


def _decimal_points(columns: list[str | None], lines: list[tuple[int, list[str]]]) -> bool:
    """Puts points for decimal commas, in place; whether there were any.

    Raises:
      PdiffError: a column has both, so that 1.234 may be a thousand.
    """
    changed = False
    for i, name in enumerate(columns):
        if name != "accuracy" and not (name or "").startswith(FACTOR):
            continue
        commas = [cells for _, cells in lines if DECIMAL_COMMA.fullmatch(cells[i].strip())]
        points = [(line, cells[i]) for line, cells in lines if "." in cells[i]]
        if commas and points:
            both = f"{shown(commas[0][i])} and in line {points[0][0]} {shown(points[0][1])}"
            raise PdiffError(f"column {shown(name)}: {both}; allowed: decimal commas or points, not both")
        for cells in commas:
            cells[i] = cells[i].replace(",", ".")
        changed = changed or bool(commas)
    return changed


def _json(content: str) -> Table:
    networks = arrays.parse_json(content)
    unknown: dict[str, None] = {}
    if isinstance(networks, dict):
        if "networks" not in networks:
            raise PdiffError(f"has the keys {shown(sorted(networks)[:5])}; allowed: networks, a list of objects")
        unknown |= {n: None for n in networks if n != "networks"}
        networks = networks["networks"]
    if not isinstance(networks, list) or not all(isinstance(r, dict) for r in networks):
        raise PdiffError("is no list of objects")
    records = []
    for i, entry in enumerate(networks):
        where = f"network {i}"
        record: dict[str, Any] = {"description": []}
        for key, value in _with_factors(where, entry):
            name = column(key)
            if name is None:
                unknown[key] = None
            elif value is None:
                continue
            elif name == "description":
                record[name] += value if isinstance(value, list) else [value]
            elif name in record:
                raise PdiffError(f"{where}: {shown(name)} comes twice; allowed: once")
            else:
                record[name] = value
        records.append((where, record))
    if not records:
        raise PdiffError("has no rows")
    return Table(records, _unknown(list(unknown)))


def _with_factors(where: str, entry: dict[str, Any]) -> list[tuple[str, Any]]:
    """The keys and values of an object, with `factors` as columns of their own."""
    pairs = []
    for key, value in entry.items():
        if key.strip().lower() != "factors":
            pairs.append((key, value))
        elif isinstance(value, dict) and all(n.strip() for n in value):
            pairs += [(f"{FACTOR}{n}", v) for n, v in value.items()]
        elif value is not None:
            raise PdiffError(f"{where}: factors {shown(value)}; allowed: an object with a number for each name")
    return pairs


def _unknown(names: list[str]) -> tuple[str, ...]:
    """A line on columns that are left alone; none if there are no such columns."""
    named = [shown(n.strip()) if n.strip() else "one without a name" for n in names]
    said = f"columns that are not known are left alone: {some(named, 5)}; known are {', '.join(COLUMNS)}"
    return (said,) if named else ()
