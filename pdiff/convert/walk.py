"""What becomes of each file of a folder: converted, copied, left out or refused; nothing shows until all is written."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import safetensors.numpy

from pdiff.convert import trials
from pdiff.convert.states import ALONE, State, is_torch_zip
from pdiff.errors import PdiffError
from pdiff.imports import numpy_files
from pdiff.imports.reading import BFLOAT16, FILES, parse_json, shown, size_of, text
from pdiff.system import files

PICKLES = (".pkl", ".pickle", ".joblib")
TEXTS = (".json", ".txt", ".csv")
MOST_TEXT = 64 << 20  # bytes of one
MOST_FILES = 1_000_000
OF_TRAINING = re.compile(
    r"(training_args|optimizer|scheduler|rng_state|random_states|scaler|trainer_state)\b.*|.*_optim", re.I
)
MANIFESTS = ("manifest.csv", "manifest.json")
INDEX = ".bin.index.json"


@dataclasses.dataclass
class Done:
    """What was done: how many files, lines about what was left out or read otherwise, and a line for each refusal."""

    converted: int = 0
    copied: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)


def convert(source: Path, out: Path, load: Callable[[Path], State]) -> Done:
    """Writes the networks of `source` into the new folder `out`, one after the other.

    Args:
      load: reads one file of PyTorch.

    Raises:
      PdiffError: the folders are wrong, or there was nothing to convert; nothing is written then.
    """
    if not source.is_dir():
        raise PdiffError(f"--source: {source}: no such folder; allowed: a folder with files of PyTorch")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PdiffError(f"--out: {out} is not empty; allowed: a new folder")
    if out.resolve().is_relative_to(source.resolve()):
        raise PdiffError(f"--out: {out} lies in {source}; allowed: a folder elsewhere")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = files.partial_of(out)
    partial.mkdir()
    try:
        done = _Walk(source, partial, load).all()
        if not done.converted:
            lines = done.refused[:20] or ["there are no files of PyTorch (.pt, .pth, .bin, .ckpt)"]
            raise PdiffError("\n  ".join([f"{source}: nothing was converted, nothing was written", *lines]))
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return done


class _Walk:
    """One folder on its way into another."""

    def __init__(self, source: Path, out: Path, load: Callable[[Path], State]):
        self.source, self.out, self.load, self.done = source, out, load, Done()
        self.names: dict[str, str] = {}  # of the files written, and from what; posix paths below the folders
        self.shapes: dict[Path, list[tuple[Path, dict]]] = {}  # by folder: the file, and what it holds
        self.rows: list[Path] = []
        self.said: dict[str, list[str]] = {}  # lines, each with the files of which it is

    def all(self) -> Done:
        torch, others = [], []
        for path in _files(self.source, self.done):
            (torch if _of_torch(path) else others).append(path)
        for path in others:
            self._each(path, self._other)
        for path in torch:
            self._each(path, self._torch)
        for path in self.rows:
            self._each(path, self._rows)
        for folder, held in self.shapes.items():
            if not (self.out / folder.relative_to(self.source) / numpy_files.SHAPES).exists():
                self.done.refused += [
                    f"{self._name(p)}: holds shapes alone, and no array has such columns" for p, _ in held
                ]
        self._lists()
        for line, names in self.said.items():
            self.done.notes.append(f"{', '.join(names[:2])}{f' and {len(names) - 2} more' * (len(names) > 2)}: {line}")
        return self.done

    def _each(self, path: Path, what: Callable[[Path], None]) -> None:
        try:
            what(path)
        except (PdiffError, OSError) as e:
            self.done.refused.append(f"{self._name(path)}: {e}")

    def _say(self, line: str, path: Path) -> None:
        self.said.setdefault(line, []).append(self._name(path))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.source).as_posix()

    def _target(self, path: Path, name: str) -> Path:
        """Where to write what comes from `path`, once."""
        if (earlier := self.names.get(name)) is not None:
            raise PdiffError(f"would become {name}, as {earlier} does; leave one of them out")
        self.names[name] = self._name(path)
        target = self.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _other(self, path: Path) -> None:
        ending, name = path.suffix.lower(), self._name(path)
        if ending in PICKLES:
            raise PdiffError("is a pickle that can run anything; allowed: files of torch.save with tensors alone")
        if name in MANIFESTS or path.name.endswith(INDEX):
            return  # `_lists` writes them with the new names
        if ending in TEXTS and size_of(path) > MOST_TEXT or ending not in (*TEXTS, *FILES):
            self._say(f"left out: {ending or 'files without an ending'} is neither a network nor small text", path)
            return
        size_of(path)
        shutil.copyfile(path, self._target(path, name))
        self.done.copied += 1

    def _torch(self, path: Path) -> None:
        if OF_TRAINING.fullmatch(path.stem):
            self._say("left out: of a training, no network", path)
            return
        state = self.load(path)
        for note in state.notes:
            self._say(note, path)
        if state.shapes is not None:
            self.shapes.setdefault(path.parent, []).append((path, state.shapes))
        elif state.rows:
            self.rows.append(path)
        else:
            safetensors.numpy.save_file(state.arrays, self._target(path, renamed(path, self.source)), {"format": "pt"})
            self.done.converted += 1

    def _rows(self, path: Path) -> None:
        """A 2-d array alone: networks in rows, if shapes beside it say so."""
        held = self.shapes.get(path.parent, [])
        array = self.load(path).arrays[ALONE]
        fitting = [s for _, s in held if sum(int(np.prod(shape)) for shape in s.values()) == array.shape[1]]
        if held and not fitting:
            raise PdiffError(f"has {array.shape[1]} columns, unlike the shapes in {held[0][0].name}")
        if len(fitting) > 1:
            raise PdiffError(f"fits the shapes of {len(fitting)} files beside it; allowed: one")
        if array.dtype == BFLOAT16 or not fitting:  # .npy has no bfloat16
            target = self._target(path, renamed(path, self.source))
            safetensors.numpy.save_file({ALONE: array}, target, {"format": "pt"})
        else:
            target = self._target(path, str(PurePosixPath(renamed(path, self.source)).with_suffix(".npy")))
            np.save(target, array)
        if fitting:
            target.with_name(numpy_files.SHAPES).write_text(json.dumps(fitting[0], indent=1))
            self._say(f"has a network in each of its {len(array)} rows", path)
        self.done.converted += 1

    def _lists(self) -> None:
        """Manifests, and indices of shards, with the names that files have now."""
        now = {old: new for new, old in self.names.items()}
        for name in MANIFESTS:
            if (self.source / name).is_file():
                self._each(self.source / name, lambda p: self._manifest(p, now))
        if not any((self.source / name).is_file() for name in MANIFESTS):
            table, notes = trials.manifest(self.source, now)
            self.done.notes += notes
            if table:
                (self.out / MANIFESTS[0]).write_text(table, encoding="utf-8", newline="")
        for path in sorted(self.source.rglob(f"*{INDEX}")):
            self._each(path, lambda p: self._index(p, now))

    def _manifest(self, path: Path, now: dict[str, str]) -> None:
        content = text(path)
        if path.suffix == ".json":
            networks = parse_json(content)
            for row in networks.get("networks", []) if isinstance(networks, dict) else networks:
                if isinstance(row, dict) and isinstance(row.get("file"), str):
                    row["file"] = now.get(_plain(row["file"]), row["file"])
            written = json.dumps(networks, indent=1)
        else:
            rows, into = list(csv.reader(io.StringIO(content, newline=""))), io.StringIO(newline="")
            column = [c.strip() for c in rows[0]].index("file") if rows and "file" in map(str.strip, rows[0]) else None
            for row in rows[1:]:
                if column is not None and column < len(row):
                    row[column] = now.get(_plain(row[column]), row[column])
            csv.writer(into, lineterminator="\n").writerows(rows)
            written = into.getvalue()
        self._target(path, path.name).write_text(written, encoding="utf-8", newline="")
        self.done.copied += 1

    def _index(self, path: Path, now: dict[str, str]) -> None:
        """pytorch_model.bin.index.json, whose shards have other names now."""
        content = parse_json(text(path))
        if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
            raise PdiffError("has no weight_map; allowed: the index of the shards of a network")
        folder = PurePosixPath(self._name(path)).parent
        for array, file in content["weight_map"].items():
            if (new := now.get((folder / str(file)).as_posix())) is None:
                raise PdiffError(f"names {shown(file)}, which was not converted")
            content["weight_map"][array] = PurePosixPath(new).name
        name = path.name.removesuffix(INDEX).replace("pytorch_model", "model") + ".safetensors.index.json"
        self._target(path, (folder / name).as_posix()).write_text(json.dumps(content, indent=1))
        self.done.copied += 1


def renamed(path: Path, source: Path) -> str:
    """The name, below the new folder, of what comes from the PyTorch file `path`.

    TRIAL/checkpoint_000050/checkpoints of Ray Tune becomes TRIAL/checkpoint_000050.safetensors, and transformers'
    pytorch_model.bin becomes model.safetensors, as transformers calls it.
    """
    name = path.relative_to(source)
    if trials.checkpoint(path) is not None:
        name = name.parent
    elif path.suffix.lower() in trials.TORCH:
        name = name.with_suffix("")
    if name.name.startswith("pytorch_model") and (path.with_name("config.json").exists() or "-of-" in name.name):
        name = name.with_name(name.name.removeprefix("pytorch_"))
    return f"{name.as_posix()}.safetensors"


def _plain(file: str) -> str:
    return PurePosixPath(file.strip()).as_posix()


def _files(source: Path, done: Done) -> Iterator[Path]:
    """The regular files below `source`, sorted, without hidden ones; links to elsewhere are refused."""
    root, count = source.resolve(), 0
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(folders):
            if (Path(folder) / name).is_symlink():
                done.refused.append(f"{(Path(folder) / name).relative_to(source)}: is a link to a folder, not followed")
        for name in sorted(n for n in names if not n.startswith(".")):
            path = Path(folder) / name
            count += 1
            if count > MOST_FILES:
                raise PdiffError(f"{source}: holds more than {MOST_FILES:,} files; allowed: at most as many")
            if not path.resolve().is_relative_to(root):
                done.refused.append(f"{path.relative_to(source)}: leads out of {source}; copy the file into it (cp -L)")
            elif not path.is_file():
                done.refused.append(f"{path.relative_to(source)}: is no regular file")
            elif not name.endswith(f".{files.DIGEST}") and name != files.SUMS:  # they are of the files as they were
                yield path


def _of_torch(path: Path) -> bool:
    ending = path.suffix.lower()
    return ending in trials.TORCH or not re.fullmatch(r"\.[a-z]\w*", ending) and is_torch_zip(path)
