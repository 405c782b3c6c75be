"""What a manifest or the folders say of networks."""

import csv
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdiff.errors import Faults, PdiffError
from pdiff.imports import manifest, mapping
from pdiff.imports.manifest import Row
from pdiff.imports.tasks import task_name
from pdiff.tasks.base import SPLITS
from tests.fuzz_import import NASTY
from tests.imports import zoos

TABLE = """\ufefffile,task,description,description,factor:x,accuracy,split
a/one.npz,a,an a,"a, or so",1,0.5,seen
a/two.npz,a,,,,,
b.npz,b,a b,,2.5,,unseen
"""


def test_csv_and_json_say_the_same():
    by_csv = manifest.parse(TABLE.removeprefix("\ufeff"), ".csv")
    assert [r.file for r in by_csv] == ["a/one.npz", "a/two.npz", "b.npz"]
    assert by_csv[0].descriptions == ("an a", "a, or so") and by_csv[0].factors == {"x": 1.0}
    assert by_csv[0].accuracy == 0.5 and by_csv[1].factors == {} and by_csv[2].split == "unseen"
    records = [
        {"file": "a/one.npz", "task": "a", "description": ["an a", "a, or so"], "factors": {"x": 1}, "accuracy": 0.5,
         "split": "seen"},
        {"file": "a/two.npz", "task": "a"},
        {"file": "b.npz", "task": "b", "description": "a b", "factor:x": 2.5, "split": "unseen"},
    ]  # fmt: skip
    for found in (records, {"networks": records}):
        by_json = manifest.parse(json.dumps(found), ".json")
        assert [(r.file, r.task, r.descriptions, r.factors, r.accuracy, r.split) for r in by_json] == [
            (r.file, r.task, r.descriptions, r.factors, r.accuracy, r.split) for r in by_csv
        ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["has no rows"]),
        ("file,colour\na,b\n", ["line 1: column 'colour'", "factor:NAME"]),
        ("file,task,task\na,b,c\n", ["comes twice"]),
        ("file,task\na\n", ["line 2: 1 cells; allowed: 2"]),
        ('file\n"a\n', ["no CSV"]),
        ("file\na\0\n", ["NUL"]),
        ("file,factor:x\na,nan\n", ["factor:x 'nan'"]),
        ("file,accuracy\na,1.5\n", ["accuracy 1.5", "from 0 to 1"]),
        ("file,split\na,train\n", ["split 'train'", "seen, validation, interp, unseen"]),
        ("file\n../a\n", ["'../a'", "below the source"]),
        ("file\n/etc/passwd\n", ["'/etc/passwd'"]),
        ("file\n.\n", ["'.'"]),
        ("file\na\na\n", ["line 3: file 'a' is also that of line 2"]),
    ],
)
def test_what_is_wrong_with_a_table_is_told_by_line(text, words):
    with pytest.raises(PdiffError) as e:
        manifest.parse(text, ".csv")
    assert all(w in str(e.value) for w in words)


@pytest.mark.parametrize(
    "text",
    [
        "3", "{}", '{"networks": 3}', "[1]", '[{"file": 1}]', '[{"file": "a", "factors": [1]}]',
        '[{"file": "a", "description": {"a": 1}}]', '[{"file": "a", "factor:": 1}]',
    ],
)  # fmt: skip
def test_json_that_is_no_manifest_is_refused(text):
    with pytest.raises(PdiffError):
        manifest.parse(text, ".json")


def test_encodings_are_told(tmp_path):
    zoos.networks(tmp_path, ".npz", 2)
    (tmp_path / "manifest.csv").write_bytes(TABLE.encode("utf-16"))
    with pytest.raises(PdiffError, match="manifest.csv: is no UTF-8 text"):
        manifest.rows(tmp_path, None)


def test_folders_are_tasks_and_what_lies_in_them_their_seeds(tmp_path):
    zoos.loras(tmp_path, 2)
    zoos.lora(tmp_path / "many" / "seed_0", 0.5)
    zoos.lora(tmp_path / "many" / "seed_1", 0.6)
    (tmp_path / "many" / "description.txt").write_text("several seeds\n\nof one task\n")
    zoos.save(tmp_path / "single.safetensors", zoos.network(0))
    zoos.save(tmp_path / "base.safetensors", zoos.network(1))
    (tmp_path / "README.md").write_text("notes")
    found = manifest.rows(tmp_path, None)
    assert [(r.file, r.task) for r in found] == [
        ("many/seed_0", "many"), ("many/seed_1", "many"), ("single.safetensors", "single"),
        ("strength_0.00", "strength_0.00"), ("strength_1.00", "strength_1.00"),
    ]  # fmt: skip
    assert found[0].descriptions == ("several seeds", "of one task") and found[2].descriptions == ()


def test_folders_without_networks_and_pickles_are_each_told(tmp_path):
    zoos.networks(tmp_path, ".npz", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "task_0" / "old.pt").write_bytes(b"\x80\x02")
    with pytest.raises(Faults) as e:
        manifest.rows(tmp_path, None)
    assert len(e.value.lines) == 2
    assert "empty: holds no network" in e.value.lines[0] and "task_0: old.pt is a pickle" in e.value.lines[1]


def test_a_folder_with_a_dot_in_its_name_is_a_task_of_its_own():
    rows = [Row(f"strength_0.{i}", "", ()) for i in range(3)]
    assert [task_name(r) for r in rows] == ["strength_0.0", "strength_0.1", "strength_0.2"]
    assert task_name(Row("a.safetensors", "", ())) == "a" and task_name(Row("b_0.1/net.npz", "", ())) == "b_0.1"


# --- properties: tables with nasty cells, and damaged ones -------------------------------------------

cells = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=15),
    st.sampled_from(["a/one.npz", "b", "seen", "unseen", "0.5", "1", "a task", "./a", "a//b", "-0.0", "1e29", "1e30"]),
)
columns = st.lists(
    st.sampled_from(["task", "description", "description", "factor:x", "factor:y", "accuracy", "split"])
    | st.sampled_from(["file", "factor:", "colour", "factor: x", " task "]),
    max_size=5,
)
fitting = {
    "file": st.integers(0, 30).map(lambda i: f"task_{i}/net.npz"),
    "task": st.sampled_from(["one", "two", ""]),
    "description": st.text(st.characters(categories=["L", "N"]), max_size=8),
    "accuracy": st.floats(0, 1).map(repr),
    "split": st.sampled_from(["seen", "unseen", ""]),
}


@st.composite
def tables(draw):
    header = ["file", *draw(columns)] if draw(st.booleans()) else draw(columns)
    nasty = draw(st.integers(0, 3))  # of four rows, how many
    rows = []
    for i in range(draw(st.integers(0, 4))):
        sort = [cells if i < nasty else fitting.get(name.strip(), st.floats(-9, 9).map(repr)) for name in header]
        rows.append([draw(s) for s in sort])
    return header, rows


def check_rows(found, said):
    """Rows as they have to be, whatever the text was, and as `said`, a tuple for each, has them."""
    assert len({r.file for r in found}) == len(found) >= 1
    for row in found:
        path = Path("/source") / row.file
        assert Path(os.path.normpath(path)) == path and path.is_relative_to("/source") and path != Path("/source")
        assert row.split in ("", *SPLITS) and (row.accuracy is None or 0 <= row.accuracy <= 1)
        assert all(math.isfinite(np.float32(v)) for v in row.factors.values())
        assert all(t and t.isprintable() and len(t) <= 1000 for t in (*row.descriptions, *row.factors, row.task or "-"))
    assert said is None or [(r.file, r.task, r.factors, r.accuracy) for r in found] == said


def check_refusal(error):
    assert 5 < len(str(error)) < 8000 and "\x1b" not in str(error) and "\0" not in str(error)
    assert "\n" not in str(error) or isinstance(error, Faults)


def expected(records):
    """What Python's own readers have of a table: (file, task, factors, accuracy) of each row."""
    found = []
    for r in records:
        factors = {n: v for n, v in r.items() if n.startswith("factor:") and v.strip()}
        accuracy = (r.get("accuracy") or "").strip()
        found.append(
            (
                str(Path(r["file"].strip())),
                (r.get("task") or "").strip(),
                {n.removeprefix("factor:").strip(): float(v) for n, v in factors.items()},
                float(accuracy) if accuracy else None,
            )
        )
    return found


@given(tables(), st.lists(st.tuples(st.integers(0, 999), st.text(max_size=3)), max_size=2))
def test_property_csv_says_what_python_reads_or_is_refused(table, edits):
    header, rows = table
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    content = text.getvalue()
    for at, extra in edits:
        at %= len(content) + 1
        content = content[:at] + extra + content[at + len(extra) :]
    try:
        found = manifest.parse(content, ".csv")
    except PdiffError as e:
        return check_refusal(e)
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    names = [n.strip() for n in next(reader)]
    records = [dict(zip(names, r, strict=True)) for r in reader if any(c.strip() for c in r)]
    check_rows(found, expected(records))


values = st.recursive(
    cells | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(cells, inner, max_size=2),
    max_leaves=4,
)


@given(tables(), st.data(), st.booleans())
def test_property_json_says_what_python_reads_or_is_refused(table, data, wrapped):
    header, rows = table
    records = [dict(zip(header, row, strict=True)) for row in rows]
    plain = True
    if records and data.draw(st.booleans()):
        plain, record = False, data.draw(st.sampled_from(records))
        key = data.draw(st.sampled_from(["file", "task", "factors", "description", "accuracy"]) | cells)
        record[key] = data.draw(values)
    content = json.dumps({"networks": records} if wrapped else records)
    if data.draw(st.integers(0, 3)) == 0:
        plain, at = False, data.draw(st.integers(0, len(content)))
        content = content[:at] + data.draw(st.text(max_size=3)) + content[at + data.draw(st.integers(0, 3)) :]
    try:
        found = manifest.parse(content, ".json")
    except PdiffError as e:
        return check_refusal(e)
    check_rows(found, None)
    # A blank cell of JSON is no number, so all of them are there where such a table is accepted.
    assert not plain or [(r.file, r.factors) for r in found] == [(f, x) for f, _, x, _ in expected(records)]


@given(st.dictionaries(st.text(max_size=12), st.none(), min_size=1, max_size=5), st.data())
def test_property_a_layout_takes_names_to_paths_and_back(names, data):
    made = {n: np.arange(6, dtype=np.float32).reshape(2, 3) for n in names}
    pattern = st.sampled_from([*names, "*", "a.*", "*.*"]) | st.text(max_size=6)
    rule = st.fixed_dictionaries(
        {"from": pattern, "to": st.text(max_size=8) | st.sampled_from(["p/*", "*"]),
         "transform": st.sampled_from(sorted(mapping.TRANSFORMS))}
    )  # fmt: skip
    drawn = data.draw(st.lists(rule, max_size=3) | st.just([{"from": n, "to": f"p/{i}"} for i, n in enumerate(names)]))
    ignored = data.draw(st.lists(pattern, max_size=2))
    try:
        found, places = mapping.apply(mapping.parse({"leaves": drawn, "ignore": ignored}), made)
    except PdiffError as e:
        return check_refusal(e)
    assert set(found) == set(places) and len({p.name for p in places.values()}) == len(places)
    for path, place in places.items():
        np.testing.assert_array_equal(mapping.inverse(found[path], place.transform), made[place.name])
        assert not path.startswith("/") and ".." not in path.split("/")
