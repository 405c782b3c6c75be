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
from pdiff.imports import manifest, mapping, source
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
    by_csv = manifest.parse(TABLE.removeprefix("\ufeff"), ".csv").rows
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
        by_json = manifest.parse(json.dumps(found), ".json").rows
        assert [(r.file, r.task, r.descriptions, r.factors, r.accuracy, r.split) for r in by_json] == [
            (r.file, r.task, r.descriptions, r.factors, r.accuracy, r.split) for r in by_csv
        ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["has no rows"]),
        ("path,task\na,b\n", ["line 1: no column is 'file', of 'path', 'task'", "factor:NAME", "semicolons or tabs"]),
        ("File,file\na,b\n", ["column 'file' comes twice"]),
        ("file,task,task\na,b,c\n", ["comes twice"]),
        ("file,task\na\n", ["line 2: 1 cells; allowed: 2"]),
        ('file\n"a\n', ["no CSV"]),
        ("file\na\0\n", ["NUL"]),
        ("file,factor:x\na,nan\n", ["factor:x 'nan'"]),
        ("file,accuracy\na,101\n", ["line 2: accuracy '101'", "from 0 to 100 per cent"]),
        ("file,accuracy\na,-0.5\n", ["line 2: accuracy '-0.5'", "from 0 to 1"]),
        ("file,accuracy\na,0.9\nb,95\n", ["accuracy '95' in line 3 and '0.9' in line 2", "all in per cent"]),
        ("file,accuracy\na,90\nb,1\n", ["accuracy '90' in line 2 and '1' in line 3", "all in per cent"]),
        ("file,accuracy\na,90\nb,95%\n", ["accuracy '95%' in line 3 and '90' in line 2", "all in per cent"]),
        ("file;factor:x\na;0,5\nb;1.234\n", ["column 'factor:x': '0,5' and in line 3 '1.234'", "not both"]),
        ('file,factor:x\na,"0,5"\n', ["factor:x '0,5'"]),
        ("file\nC:\\zoo\\a\n", ["line 2: file 'C:", "below the source"]),
        ("file\n\\\\host\\a\n", ["below the source"]),
        ("file\na\\..\\..\\b\n", ["without '..'"]),
        ("file\na\\b\na/b\n", ["line 3: file 'a/b' is also that of line 2"]),
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
        '[{"file": "a", "description": {"a": 1}}]', '[{"file": "a", "factors": {" ": 1}}]',
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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (",file,task\n0,a,one\n1,b,two\n", "left alone: one without a name; known are file, task"),
        ("Unnamed: 0,FILE, Task \n0,a,one\n1,b,two\n", "left alone: 'Unnamed: 0'"),
        ("file,task,seed,lr\na,one,1,1e-3\nb,two,2,\n", "left alone: 'seed', 'lr'"),
        ("file;task\na;one\nb;two\n", ""),
        ("file;task\ra;one\rb;two\r", ""),
        ("sep=;\r\nfile;task\r\na;one\r\nb;two\r\n", ""),
        ("\n\t\nfile\ttask\na\tone\nb\ttwo\n", ""),
        ('"task";"file"\none;.\\a\ntwo;.\\b\\\n', ""),
    ],
)
def test_csv_is_read_as_spreadsheets_and_pandas_leave_it(text, told):
    listing = manifest.parse(text, ".csv")
    assert [(r.file, r.task) for r in listing.rows] == [("a", "one"), ("b", "two")]
    assert [told in note for note in listing.notes] == [True] * bool(told)


def test_numbers_of_a_european_spreadsheet(tmp_path):
    text = "Datei;FILE;Factor:Strength;accuracy;factor:n\r\n1;a\\x.npz;0,25;92,5 %;1\r\n2;a\\y.npz;-1,5E-2;80%;2\r\n"
    listing = manifest.parse(text, ".csv")
    assert [(r.file, r.factors, r.accuracy) for r in listing.rows] == [
        ("a/x.npz", {"Strength": 0.25, "n": 1.0}, 0.925), ("a/y.npz", {"Strength": -0.015, "n": 2.0}, 0.8),
    ]  # fmt: skip
    assert listing.notes[1:] == ("numbers have a decimal comma",) and "'Datei'" in listing.notes[0]


@pytest.mark.parametrize("ending", [".csv", ".json"])
@pytest.mark.parametrize(
    ("cells", "expected", "said"),
    [
        (["90", "0", "55.5"], [0.9, 0.0, 0.555], True),
        (["90%", "0.5 %", "1%"], [0.9, 0.005, 0.01], False),
        (["0.9", "1", "0"], [0.9, 1.0, 0.0], False),
        (["100", "", "2"], [1.0, None, 0.02], True),
    ],
)
def test_accuracies_in_per_cent_are_fractions(ending, cells, expected, said):
    if ending == ".csv":
        text = "file,Accuracy\n" + "".join(f"{i},{c}\n" for i, c in enumerate(cells))
    else:
        plain = [float(c) if c and "%" not in c else c or None for c in cells]
        text = json.dumps([{"file": str(i), "accuracy": c} for i, c in enumerate(plain)])
    listing = manifest.parse(text, ending)
    assert [r.accuracy for r in listing.rows] == pytest.approx(expected)
    assert [n.startswith("accuracy is taken as per cent") for n in listing.notes] == [True] * said


def test_json_with_other_keys_and_wordings_that_pandas_numbers():
    entry = {"File": "a", "seed": 3, "Factors": {"x": 1}, "description": ["one"], "description.1": "two", "split": None}
    listing = manifest.parse(json.dumps({"networks": [entry], "version": 2}), ".json")
    assert listing.rows == [Row("a", "", ("one", "two"), {"x": 1.0}, line="network 0")]
    assert listing.notes == (
        "columns that are not known are left alone: 'version', 'seed'; known are file, task, description, "
        "factor:NAME, accuracy, split",
    )
    (row,) = manifest.parse("file,description,description.1\na,one,two\n", ".csv").rows
    assert row.descriptions == ("one", "two")
    with pytest.raises(PdiffError, match="network 0: 'file' comes twice"):
        manifest.parse('[{"file": "a", "FILE": "b"}]', ".json")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_file_in_the_folder_of_an_adapter_is_the_adapter(tmp_path, name):
    zoos.loras(tmp_path, 3)
    zoos.lora(tmp_path / "tasks" / "deep", 0.3)
    (tmp_path / "manifest.csv").write_text(f"file,task\nstrength_0.50\\{name},half\n./tasks/deep/{name},\n")
    listing = manifest.rows(tmp_path, None)
    assert [(r.file, task_name(r)) for r in listing.rows] == [("strength_0.50", "half"), ("tasks/deep", "tasks")]
    assert [r.adapter is not None for r in [source.read(tmp_path, 1)]] == [True]
    (tmp_path / "manifest.csv").write_text(f"file\nstrength_0.50\nstrength_0.00\nstrength_0.50/{name}\n")
    with pytest.raises(Faults, match="line 4: file 'strength_0.50' is also that of line 2"):
        manifest.rows(tmp_path, None)


def test_adapters_that_mlx_writes_and_whole_models_are_named_by_their_folder_or_file(tmp_path):
    for name in ("a", "b"):
        zoos.lora(tmp_path / name, 0.5)
        (tmp_path / name / "adapter_model.safetensors").rename(tmp_path / name / "adapters.safetensors")
        zoos.save(tmp_path / f"full_{name}" / "model.safetensors", zoos.network(0))
        (tmp_path / f"full_{name}" / "config.json").write_text("{}")
    files = ["a/adapters.safetensors", "b", "full_a", "full_b/model.safetensors", "missing.npz"]
    (tmp_path / "manifest.json").write_text(json.dumps([{"file": f} for f in files]))
    found = [r.file for r in manifest.rows(tmp_path, None).rows]
    assert found == ["a", "b", "full_a/model.safetensors", "full_b/model.safetensors", "missing.npz"]


def test_a_folder_with_a_dot_in_its_name_is_a_task_of_its_own():
    rows = [Row(f"strength_0.{i}", "", ()) for i in range(3)]
    assert [task_name(r) for r in rows] == ["strength_0.0", "strength_0.1", "strength_0.2"]
    assert task_name(Row("a.safetensors", "", ())) == "a" and task_name(Row("b_0.1/net.npz", "", ())) == "b_0.1"


# --- properties: tables with nasty cells, and damaged ones -------------------------------------------

cells = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=15),
    st.sampled_from(["a/one.npz", "b", "seen", "unseen", "0.5", "1", "a task", "./a", "a//b", "-0.0", "1e29", "1e30"]),
    st.sampled_from(["90", "90%", "a\\b", ".\\c.npz", "weights.npy#3", "0,5"]),
)
columns = st.lists(
    st.sampled_from(["task", "description", "description", "factor:x", "factor:y", "accuracy", "split"])
    | st.sampled_from(["file", "factor:", "colour", "factor: x", " task ", "Task", "FACTOR:Y", "Accuracy", ""]),
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


def check_notes(notes):
    assert all(5 < len(n) < 1000 and n.isprintable() for n in notes)


def known(name):
    """A column's name in lower case, but for a factor's own."""
    first, colon, rest = name.strip().partition(":")
    return f"factor:{rest.strip()}" if colon and first.lower() == "factor" else name.strip().lower()


def expected(records):
    """What Python's own readers have of a table: (file, task, factors, accuracy) of each row."""
    accuracies = [(r.get("accuracy") or "").strip() for r in records]
    percent = any("%" in a or a and float(a) > 1 for a in accuracies)
    found = []
    for r, accuracy in zip(records, accuracies, strict=True):
        factors = {n.removeprefix("factor:"): v for n, v in r.items() if n.startswith("factor:") and n != "factor:"}
        found.append(
            (
                str(Path(r["file"].strip().replace("\\", "/"))),
                (r.get("task") or "").strip(),
                {n: float(v) for n, v in factors.items() if v.strip()},
                float(accuracy.rstrip(" %")) / (100 if percent else 1) if accuracy else None,
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
        listing = manifest.parse(content, ".csv")
    except PdiffError as e:
        return check_refusal(e)
    check_notes(listing.notes)
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    lines = [cells for cells in reader if any(c.strip() for c in cells)]
    names = [known(n) for n in lines[0]]
    records = [dict(zip(names, r, strict=True)) for r in lines[1:]]
    check_rows(listing.rows, expected(records))


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
        listing = manifest.parse(content, ".json")
    except PdiffError as e:
        return check_refusal(e)
    check_notes(listing.notes)
    check_rows(listing.rows, None)
    # A blank cell of JSON is no number, so all of them are there where such a table is accepted.
    records = [{known(n): v for n, v in r.items()} for r in records]
    assert not plain or [(r.file, r.factors) for r in listing.rows] == [(f, x) for f, _, x, _ in expected(records)]


@given(st.dictionaries(st.text(max_size=12), st.none(), min_size=1, max_size=5), st.data())
def test_property_a_layout_takes_names_to_paths_and_back(names, data):
    made = {n: np.arange(6, dtype=np.float32).reshape(2, 3) for n in names}
    pattern = st.sampled_from([*names, "*", "a.*", "*.*", "*.a", "*/*"]) | st.text(max_size=6)
    rule = st.fixed_dictionaries(
        {"from": pattern, "to": st.text(max_size=8) | st.sampled_from(["p/*", "*"]),
         "transform": st.sampled_from(sorted(mapping.TRANSFORMS))}
    )  # fmt: skip
    drawn = data.draw(st.lists(rule, max_size=3) | st.just([{"from": n, "to": f"p/{i}"} for i, n in enumerate(names)]))
    ignored = data.draw(st.lists(pattern, max_size=2))
    layout = {"leaves": drawn, "ignore": ignored} if data.draw(st.integers(0, 4)) else {"ignore": ignored}
    try:
        found, places = mapping.apply(mapping.parse(layout), made)
    except PdiffError as e:
        return check_refusal(e)
    assert set(found) == set(places) and len({p.name for p in places.values()}) == len(places)
    for path, place in places.items():
        np.testing.assert_array_equal(mapping.inverse(found[path], place.transform), made[place.name])
        assert not path.startswith("/") and ".." not in path.split("/")
