"""Damaged files and manifests by the thousand: each import ends in a plain error or is right, and touches nothing else.

    python -m tests.fuzz_import --files=1000 --manifests=1000

Prints how many ended how, and the slowest. A traceback, more than `LIMIT_S` seconds, a wrong array or a changed file
outside the workdir ends it with the seed that shows it again.
"""

import argparse
import csv
import io
import json
import os
import pickle
import shutil
import signal
import struct
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from configs import imported
from pdiff import config as config_lib
from pdiff import run, scenario
from pdiff.errors import PdiffError
from pdiff.zoo import store
from tests.fuzz_kinds import KINDS, Kind
from tests.imports import zoos

LIMIT_S = 20
NASTY = (
    "", " ", "..", "../../outside/secret.txt", "/etc/passwd", "task_0/../../outside", "task_0", "a\0b", "nan", "inf",
    "-1", "1e400", "1" * 400, "x" * 20_000, "é\u202e", '"', "'", "=1+1", "task_0/network.safetensors", "seen", "interp",
    "\\\\host\\share", "~/x", "C:\\x", "\n", "NULL", "0.5", "factor:", "[" * 50,
)  # fmt: skip


def config() -> ConfigDict:
    """Nothing held out, every bit kept."""
    made = imported.get_config()
    with made.unlocked():
        made.tasks.num_unseen = made.tasks.num_validation = 0
        made.zoo.align = "none"
        made.zoo.import_mb = 1.0
    return made


def source_of(root: Path, kind: Kind) -> Path:
    """A sound source of that kind."""
    kind.write(root)
    return root


def damage_file(root: Path, kind: Kind, random: np.random.Generator) -> None:
    """Changes something about one network of a source."""
    paths = sorted(p for p in (root / kind.folder).rglob("*") if p.is_file())
    path = paths[random.integers(len(paths))]
    choice = int(random.integers(10))
    if choice < 5:
        path.write_bytes(damaged(path.read_bytes(), random))
    elif choice == 5:
        path.write_bytes(hostile(path.read_bytes(), random))
    elif choice == 6 and path.suffix == ".json":
        path.write_text(json.dumps(twisted(json.loads(path.read_text()), random)))
    elif choice == 6 or choice == 7:
        structured(path, random)
    else:
        path.unlink()
        (lambda: path.symlink_to(root.parent / "outside" / "secret.txt"), lambda: path.mkdir(),
         lambda: os.mkfifo(path), lambda: None, lambda: path.symlink_to(path))[random.integers(5)]()  # fmt: skip


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """Bytes flipped, cut off, left out, repeated or made up."""
    made = bytearray(data)
    how = int(random.integers(6))
    at = int(random.integers(len(made) + 1))
    span = int(random.integers(1, 64))
    if how == 0:
        for _ in range(int(random.integers(1, 6))):
            if made:
                made[random.integers(len(made))] = int(random.integers(256))
    elif how == 1:
        del made[at:]
    elif how == 2:
        del made[at : at + span]
    elif how == 3:
        made[at:at] = made[at : at + span]
    elif how == 4:
        made[at : at + span] = random.bytes(span)
    else:  # the beginning, where the sizes are
        for i in range(min(16, len(made))):
            if random.random() < 0.3:
                made[i] = int(random.integers(256))
    return bytes(made)


def hostile(data: bytes, random: np.random.Generator) -> bytes:
    """What is something else altogether, or says that it is enormous."""
    bomb, evil = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("params/Dense_0/kernel.npy", b"\0" * 3_000_000)
    with zipfile.ZipFile(evil, "w") as z:
        z.writestr("../../outside/evil.npy", npy({"descr": "<f4", "fortran_order": False, "shape": (2,)}, b"\0" * 8))
    lying = io.BytesIO()
    with zipfile.ZipFile(lying, "w") as z:
        z.writestr("a.npy", npy({"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}, b""))
        z.writestr("b.npy", npy({"descr": "|O", "fortran_order": False, "shape": (1,)}, pickle.dumps([1])))
    choices = (
        b"", pickle.dumps({"a": np.ones(3)}), bomb.getvalue(), evil.getvalue(), lying.getvalue(), b"\0" * 100,
        struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 60_000) + b"[" * 60_000, b"PK\x03\x04" + data,
        data + data, b"{" * 5000, b"\x93" * 5000, random.bytes(200), b"\x81\xa1a" * 3000,
        b"\xdd\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff", b"\x89HDF\r\n\x1a\n" + random.bytes(300),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    )  # fmt: skip
    return choices[random.integers(len(choices))]


def npy(header: dict, data: bytes) -> bytes:
    """A .npy member with any header."""
    text = repr(header).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def structured(path: Path, random: np.random.Generator) -> None:
    """A file of the right format whose contents are not those of the others, or are no weights."""
    arrays = zoos.network(1)
    name = str(random.choice(sorted(arrays)))
    odd = arrays[name]
    changes = (
        lambda: odd.astype(np.float64), lambda: odd.astype(np.int32), lambda: odd.astype(">f4"),
        lambda: odd.astype(np.float16),
        lambda: np.full_like(odd, np.nan), lambda: odd * np.float32(np.inf), lambda: odd.reshape(-1, 1),
        lambda: odd[:0], lambda: zoos.network(0)[name], lambda: np.asarray(odd.flat[0]), lambda: odd[::-1].copy(),
    )  # fmt: skip
    changed = changes[random.integers(len(changes))]()
    named = (
        {**arrays, name: changed} if random.random() < 0.7 else {"../x": odd, NASTY[random.integers(len(NASTY))]: odd}
    )
    target = path if path.suffix in (".safetensors", ".npz", ".msgpack") else None
    if target is None:
        return
    target.unlink()
    try:
        zoos.save(target, named)
    except Exception:  # what the library itself will not write is left out
        target.write_bytes(b"")


def twisted(value, random: np.random.Generator, depth: int = 0):
    """JSON with some value exchanged for another, somewhere."""
    odd = [None, True, -1, 0, 1e308, 10**40, "", [], {}, [[]], {"a": [1]}, *NASTY]
    if random.random() < 0.25 or not isinstance(value, (dict, list)) or not value:
        return odd[random.integers(len(odd))]
    if isinstance(value, list):
        at = int(random.integers(len(value)))
        return [twisted(v, random, depth + 1) if i == at else v for i, v in enumerate(value)]
    key = sorted(value)[random.integers(len(value))]
    if random.random() < 0.2:
        return {("twisted" if k == key else k): v for k, v in value.items()}
    if random.random() < 0.2:
        return {**value, "use_dora": True}
    return {k: twisted(v, random, depth + 1) if k == key else v for k, v in value.items()}


MANIFEST_OF = (".safetensors", "rows of .npy")
MANIFEST = [
    {"file": "", "task": f"task {i}", "description": f"the task of number {i}",
     "factor:number": f"{i}", "accuracy": "0.5", "split": "seen"} for i in range(4)
]  # fmt: skip


def write_manifest(root: Path, random: np.random.Generator) -> Path:
    """A manifest of the source with something wrong, or odd but allowed, about it."""
    named = [
        f"weights.npy#{i}" if (root / "weights.npy").exists() else f"task_{i}/network.safetensors" for i in range(4)
    ]
    rows = [r | {"file": file} for r, file in zip(MANIFEST, named, strict=True)]
    kind = int(random.integers(10))
    if kind < 2:
        for _ in range(int(random.integers(1, 4))):
            row = rows[random.integers(4)]
            row[str(random.choice(list(row)))] = NASTY[random.integers(len(NASTY))]
    elif kind == 2:
        rows.append(dict(rows[random.integers(4)]))
    elif kind == 3:
        rows = rows[: int(random.integers(0, 4))]
    elif kind >= 8:  # as spreadsheets and pandas have it
        share = ("50", "50%", "0,5", 0.5)[random.integers(4)]
        rows = [
            {**r, "accuracy": share, "factor:number": f"{i},5", "notes": "?", "Unnamed: 0": i}
            for i, r in enumerate(rows)
        ]
    if kind % 2:
        found = twisted(rows, random) if kind in (5, 7) else rows
        path, data = (
            root / "manifest.json",
            json.dumps(found if random.random() < 0.5 else {"networks": found}).encode(),
        )
    else:
        text = io.StringIO()
        columns = (
            list(random.permutation(list(rows[0]))) if kind == 4 and rows else list(rows[0] if rows else MANIFEST[0])
        )
        header = [NASTY[random.integers(len(NASTY))] if kind == 6 and random.random() < 0.2 else c for c in columns]
        if kind == 8:
            header = [str(random.choice([c, c.upper(), f" {c} "])) for c in header]
        separator = ",;\t"[random.integers(3)] if kind == 8 else ","
        text.write("sep=;\n" * (separator == ";" and random.random() < 0.3))
        writer = csv.writer(text, delimiter=separator)
        writer.writerow(header)
        writer.writerows([r[c] for c in columns] for r in rows)
        path, data = root / "manifest.csv", text.getvalue().encode("utf-8", "replace")
    how = float(random.random())
    if how < 0.35:
        data = damaged(data, random)
    elif how < 0.45:
        data = data.decode().encode(str(random.choice(["utf-16", "utf-8-sig", "latin-1"])), "replace")
    path.write_bytes(data)
    return path


def said(path: Path) -> list[dict]:
    """The rows of a manifest as Python's own readers have them, by the names of columns in lower case."""
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".json":
        found = json.loads(text)
        found = found["networks"] if isinstance(found, dict) else found
    else:
        plain = [line for line in io.StringIO(text, newline="") if not line.startswith("sep=")]
        header = next(line for line in plain if line.strip())
        reader = csv.reader(plain, delimiter=max(",;\t", key=header.count))
        lines = [c for c in reader if any(v.strip() for v in c)]
        found = [dict(zip(lines[0], cells, strict=True)) for cells in lines[1:]]
    rows = [{name.strip().lower(): v for name, v in r.items() if v is not None} for r in found]
    return [r | {"file": r["file"].replace("\\", "/")} for r in rows]


def check_import(workdir: Path, root: Path, kind: Kind, manifest: Path | None) -> None:
    """Whether an import that went well has what the files hold."""
    facts = scenario.load(workdir)
    networks = store.read(workdir / "zoo", config_lib.zoo_fingerprint(config()))
    by_task: dict[str, list[dict]] = {}
    if manifest is not None:
        for row in said(manifest):
            first, _, number = Path(row["file"].strip()).parts[0].partition("#")
            name = (row.get("task") or "").strip() or (f"row_{int(number):05d}" if number else first)
            by_task.setdefault(name, []).append(row)
        assert {t["name"] for t in facts.tasks} == set(by_task)
    for i, task in enumerate(facts.tasks):
        rows = np.flatnonzero(networks[task["split"]].task == i)
        if manifest is None:
            files = [task["name"]]
        else:
            files = [r["file"].strip().split("/")[0] for r in by_task[task["name"]]]
            for value in (r.get("factor:number") for r in by_task[task["name"]]):
                assert value in (None, "") or task["factors"] == [float(str(value).replace(",", "."))]
        assert len(files) == len(rows)
        for row, file in zip(rows, files, strict=True):
            kept = traverse_util.flatten_dict(networks[task["split"]][row : row + 1].params, sep="/")
            there = kind.read(root, file)
            for path, (_, _, name, _) in facts.leaves.items():
                np.testing.assert_array_equal(kept[path][0], np.asarray(there[name]).astype(np.float32))
            assert len(there) == len(kept)


def listing(root: Path) -> dict:
    """What lies below `root`, to see whether anything changed."""
    return {p: (p.lstat().st_mtime_ns, p.lstat().st_size, p.is_symlink()) for p in root.rglob("*")}


def case(kind: Kind, seed: int, sound: Path, manifests: bool, where: Path) -> tuple[str, float]:
    """One import of a damaged source; how it ended, and in how many seconds."""
    random = np.random.default_rng([seed, manifests])
    root, workdir = where / "source", where / "workdir"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(sound, root)
    manifest = write_manifest(root, random) if manifests else None
    if not manifests:
        damage_file(root, kind, random)
    before, start = listing(where), time.perf_counter()
    signal.alarm(LIMIT_S)
    try:
        run.import_networks(config(), root, None, workdir)
        ended = "imported"
    except PdiffError as e:
        ended = "refused"
        assert 10 < len(str(e)) < 8000, f"message of {len(str(e))} characters"
    finally:
        signal.alarm(0)
    seconds = time.perf_counter() - start
    if ended == "imported":
        check_import(workdir, root, kind, manifest)
        shutil.rmtree(workdir)
    after = listing(where)
    assert after == before, f"changed: {sorted(map(str, set(after) ^ set(before)))[:3]}"
    return ended, seconds


def _too_long(signum, frame):
    raise TimeoutError(f"more than {LIMIT_S} s")


def fuzz(files: int, manifests: int, where: Path, first: int = 0) -> Counter:
    """Runs the cases and returns how often each kind ended how; raises AssertionError naming the case that is wrong."""
    (where / "outside").mkdir()
    (where / "outside" / "secret.txt").write_text("secret")
    names = list(KINDS)
    sound = {name: source_of(where / "sound" / f"{i}", KINDS[name]) for i, name in enumerate(names)}
    ended, slowest = Counter(), (0.0, "")
    previous = signal.signal(signal.SIGALRM, _too_long)
    try:
        for i in range(files + manifests):
            of_manifests = i >= files
            name = MANIFEST_OF[i % 2] if of_manifests else names[i % len(names)]
            seed = first + i
            try:
                how, seconds = case(KINDS[name], seed, sound[name], of_manifests, where)
            except Exception as e:
                raise AssertionError(f"kind {name!r}, seed {seed}, manifest {of_manifests}: {e!r}") from e
            ended[f"manifest of {name}" if of_manifests else name, how] += 1
            slowest = max(slowest, (seconds, f"{name} {seed}"))
    finally:
        signal.signal(signal.SIGALRM, previous)
    ended["slowest, ms"] = round(1000 * slowest[0])
    return ended


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--manifests", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first case")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for what, count in sorted(fuzz(chosen.files, chosen.manifests, Path(folder), chosen.first).items(), key=str):
            print(f"{what if isinstance(what, str) else ' '.join(what)}: {count}")
