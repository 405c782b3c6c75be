"""WordNet's noun definitions (Miller 1995, Fellbaum 1998) as a TFDS data set: texts of 23 kinds of thing.

    python -m pdiff.tasks.data.wordnet --source=/usr/share/wordnet --data_dir=DIR

writes DIR/wordnet_kinds/1.0.0 in a minute, for `--config.tasks.data=wordnet --config.tasks.data_dir=DIR`. Debian's
package `wordnet-base` puts `data.noun` where this command reads it. A text is a noun and its definition, such as "oak:
a deciduous tree of the genus Quercus"; its kind is the lexicographer's file that it stands in. Of each kind there are
as many texts, 400 by default: seven tenths to train on, one for validation and two for tests, by a fixed permutation.

Beside each text lie its tokens after the layers of MiniLM that no task changes (`pdiff.minilm`), computed here once.
"""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags
from jaxtyping import Float, Int

from pdiff import minilm
from pdiff.errors import PdiffError
from pdiff.system import files, logs, tfds_folder
from pdiff.system.logs import log

NAME, VERSION, RELEASE = "wordnet_kinds", "1.0.0", "3.0"
SOURCE = "data.noun"
# The lexicographer's files of nouns with 400 definitions or more, by number (WordNet's lexnames).
KINDS = {
    4: "act", 5: "animal", 6: "artifact", 7: "attribute", 8: "body", 9: "cognition", 10: "communication", 11: "event",
    12: "feeling", 13: "food", 14: "group", 15: "location", 17: "object", 18: "person", 19: "phenomenon", 20: "plant",
    21: "possession", 22: "process", 23: "quantity", 24: "relation", 26: "state", 27: "substance", 28: "time",
}  # fmt: skip
PER_KIND, LEAST = 400, 10
LENGTH = 24  # tokens of a text that are read
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
COMMAND = "prepare it with `python -m pdiff.tasks.data.wordnet --source=DIR --data_dir={}`, DIR a folder with data.noun"
DEBIAN = "Debian's wordnet-base has it in /usr/share/wordnet"

_LINE = re.compile(r"(\d{8}) (\d\d) n ([0-9a-f]{2}) (\S+) .* \| (.+?) *")
_POINTER = re.compile(r"[@~]i? (\d{8}) n ")


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts of one part of the data set, kind after kind, as many of each.

    Attributes:
      texts: a noun and its definition.
      x: their tokens, flat; see `pdiff.minilm.Reader.after`.
      y: their kinds, by position in KINDS.
    """

    texts: tuple[str, ...]
    x: Float[np.ndarray, "n features"]
    y: Int[np.ndarray, " n"]


class WordnetKinds(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the data set."""

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = {str(VERSION): f"Of WordNet {RELEASE}."}
    name = NAME
    pkg_dir_path = Path(__file__).parent

    def __init__(self, data_dir: Path, splits: dict[str, Texts]):
        self._parts = splits
        super().__init__(data_dir=str(data_dir), file_format=tfds_folder.FORMAT)

    def _info(self) -> tfds.core.DatasetInfo:
        width = self._parts["train"].x.shape[1]
        tokens = tfds.features.Tensor(shape=(width,), dtype=np.float16)
        kind = tfds.features.ClassLabel(names=list(KINDS.values()))
        return tfds.core.DatasetInfo(
            builder=self,
            description="Nouns with their definitions, of 23 kinds, and their tokens in all-MiniLM-L6-v2.",
            homepage="https://wordnet.princeton.edu",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text(), "tokens": tokens, "kind": kind}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(part) for split, part in self._parts.items()}

    def _generate_examples(self, part):
        for i, (text, x, y) in enumerate(zip(part.texts, part.x, part.y, strict=True)):
            yield i, {"text": text, "tokens": x, "kind": int(y)}


def prepare(source: Path, data_dir: Path, per_kind: int = PER_KIND) -> Path:
    """Writes the data set, unless it is there, and returns its folder.

    Raises:
      PdiffError: data.noun is missing, damaged or of another version, has too few definitions of a kind, or MiniLM is
        not installed; the disk is full.
    """
    by_kind = definitions(Path(source).expanduser() / SOURCE)
    for kind, texts in by_kind.items():
        if len(texts) < per_kind:
            raise PdiffError(f"--source: {source} has {len(texts)} definitions of {kind}; allowed: at least {per_kind}")
    if per_kind < LEAST:
        raise PdiffError(f"per_kind: got {per_kind}; allowed: at least {LEAST}")
    reader = minilm.Reader(minilm.find("tasks.data: 'wordnet'"))
    data_dir = Path(data_dir).expanduser()
    data_dir.mkdir(parents=True, exist_ok=True)
    width = LENGTH * reader.sizes.width
    files.require_space(data_dir, 4 * len(KINDS) * per_kind * width, "the data set")  # float16, shards twice
    log.info("wordnet: %d texts through the lower layers of MiniLM, some 15 seconds a core", len(KINDS) * per_kind)
    parts = {part: _part(by_kind, rows, reader) for part, rows in rows_of(per_kind).items()}
    builder = WordnetKinds(data_dir, parts)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints progress
        tfds.disable_progress_bar()
        builder.download_and_prepare()
    return Path(builder.data_dir)


def rows_of(per_kind: int) -> dict[str, slice]:
    """Which of the permuted texts of a kind each part has."""
    ends = np.round(np.cumsum([0, *SHARES.values()]) * per_kind).astype(int).tolist()
    return {part: slice(a, b) for part, a, b in zip(SHARES, ends[:-1], ends[1:], strict=True)}


def _part(by_kind: Mapping[str, list[str]], rows: slice, reader: minilm.Reader) -> Texts:
    texts = [t for each in by_kind.values() for t in each[rows]]
    x = reader.after(texts, reader.sizes.depth - minilm.TOP, LENGTH)
    return Texts(tuple(texts), x.reshape(len(x), -1), np.repeat(np.arange(len(KINDS)), len(texts) // len(KINDS)))


def definitions(path: Path) -> dict[str, list[str]]:
    """The texts of each kind in a `data.noun`, in a fixed order that is not the file's; no definition comes twice.

    Raises:
      PdiffError: it is missing, damaged, or of another version.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise PdiffError(
            f"{path}: no such file, or unreadable; allowed for --source: a folder with it. {DEBIAN}"
        ) from e
    by_kind: dict[str, dict[str, str]] = {kind: {} for kind in KINDS.values()}
    offset, offsets, pointers, version = 0, set(), set(), None
    for number, raw in enumerate(data.splitlines(keepends=True), 1):
        line = raw.decode("utf-8", "replace")
        if line.startswith("  "):
            version = version or re.search(r"WordNet (\d+\.\d+)", line)
        else:
            match = _LINE.fullmatch(line.rstrip("\n"))
            if not match or int(match[1]) != offset or not line.endswith("\n"):
                raise PdiffError(
                    f"{path}, line {number}: damaged, or no WordNet: {line[:40].rstrip()!r}; allowed: a noun that "
                    f"starts with its place in the file, {offset:08d}. {DEBIAN}"
                )
            offsets.add(offset)
            pointers.update(map(int, _POINTER.findall(line.partition(" | ")[0])))
            if kind := KINDS.get(int(match[2])):
                gloss = re.split(r'; "', match[5])[0].strip()
                by_kind[kind].setdefault(gloss, f"{match[4].replace('_', ' ')}: {gloss}")
        offset += len(raw)
    if not version or version[1] != RELEASE:
        got = version[1] if version else "no version"
        raise PdiffError(f"{path}: WordNet {got}; allowed: {RELEASE}, by its first lines. {DEBIAN}")
    if missing := sorted(pointers - offsets):
        raise PdiffError(f"{path}: damaged: {len(missing)} nouns that others point to are missing. {DEBIAN}")
    return {kind: _shuffled(list(texts.values())) for kind, texts in by_kind.items()}


def _shuffled(texts: list[str]) -> list[str]:
    return [texts[i] for i in np.random.RandomState(0).permutation(len(texts))]


def read(data_dir: str) -> dict[str, Texts]:
    """The parts `train`, `validation` and `test` of the data set in `data_dir`.

    Raises:
      PdiffError: it is missing, damaged, or not what `prepare` writes.
    """
    command = COMMAND.format(data_dir or "DATA")
    if not data_dir:
        raise PdiffError(f"tasks.data_dir: got ''; allowed for wordnet: the folder that it is in; {command}")
    where = Path(data_dir).expanduser() / NAME / VERSION
    if not (where / "features.json").exists():
        raise PdiffError(f"tasks.data_dir: no {NAME} in {data_dir}; {command}")
    try:
        builder = tfds_folder.open_folder(where)
        parts = {part: _read(builder, part) for part in SHARES}
    except (RuntimeError, OSError, ValueError, KeyError) as e:  # what TFDS and array_record raise
        reason = " ".join(str(e).split()) or type(e).__name__
        raise PdiffError(f"{where}: unreadable or damaged ({reason}); delete it and {command}") from e
    for part, texts in parts.items():
        counts = np.bincount(texts.y, minlength=len(KINDS))
        if len({*counts.tolist()}) > 1 or (np.diff(texts.y) < 0).any() or not np.isfinite(texts.x).all():
            raise PdiffError(
                f"{where}: its {part} texts are not as many of each kind, in order; delete it and {command}"
            )
    return parts


def _read(builder: tfds.core.DatasetBuilder, part: str) -> Texts:
    source = builder.as_data_source(part)
    rows = [e for i in range(0, len(source), 500) for e in source.__getitems__(range(i, min(i + 500, len(source))))]
    texts = tuple(e["text"].decode() for e in rows)
    return Texts(texts, np.stack([e["tokens"] for e in rows]), np.array([e["kind"] for e in rows], np.int32))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    logs.set_up()
    try:
        for name in ("source", "data_dir"):
            if not flags.FLAGS[name].value:
                raise PdiffError(f"--{name}: missing; allowed: a folder")
        log.info("wordnet: %s", prepare(Path(flags.FLAGS.source), Path(flags.FLAGS.data_dir)))
    except PdiffError as e:
        print(f"pdiff: error: {e}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":  # not at import: other programs have flags of these names
    flags.DEFINE_string("source", None, "The folder with WordNet's data.noun.")
    flags.DEFINE_string("data_dir", None, "The folder of TFDS data sets to write into.")
    app.run(main)
