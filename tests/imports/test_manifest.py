"""What a manifest or the folders say of networks."""

import json

import pytest

from pdiff.errors import Faults, PdiffError
from pdiff.imports import manifest
from pdiff.imports.manifest import Row
from pdiff.imports.tasks import named
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
    assert [named(r) for r in rows] == ["strength_0.0", "strength_0.1", "strength_0.2"]
    assert named(Row("a.safetensors", "", ())) == "a" and named(Row("b_0.1/net.npz", "", ())) == "b_0.1"
