"""A made-up WordNet in the format of data.noun, and MiniLM replaced by a tiny BERT, for tests of families of texts."""

from pathlib import Path

import numpy as np

from pdiff import minilm
from pdiff.tasks.data import wordnet
from tests.models import tiny_bert

LICENCE = [
    f"  {i} {line}  " for i, line in enumerate(["This software", "", "WordNet 3.0 Copyright 2006 by Princeton"], 1)
]


def write(folder: Path, per_kind: int, version: str = "3.0", kinds=(3, *wordnet.KINDS)) -> Path:
    """A data.noun with so many nouns of each kind, each of which the next points to."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, place, above = [line.replace("3.0", version) for line in LICENCE], 0, None
    for line in lines:
        place += len(line) + 1
    random = np.random.RandomState(0)
    for number in range(per_kind):
        for kind in kinds:
            letters = "".join(random.choice(list("abcdefgh"), 6))
            up = "000" if above is None else f"001 @ {above:08d} n 0000"
            gloss = f'{"xyz"[kind % 3]}{kind} {letters} of no. {number}; "an {letters}_example"'
            line = f"{place:08d} {kind:02d} n 01 {letters}_{kind} 0 {up} | {gloss}  "
            lines.append(line)
            above, place = place, place + len(line) + 1
    path = folder / wordnet.SOURCE
    path.write_text("\n".join(lines) + "\n")
    return path


def tiny_minilm(folder: Path, monkeypatch) -> Path:
    """A tiny BERT in the place of MiniLM."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_bert.write(folder)
    monkeypatch.setattr(minilm, "find", lambda needed_by="": folder)
    return folder


def prepared(where: Path, monkeypatch, per_kind: int = 10) -> Path:
    """A folder with the data set of such texts; see `tiny_minilm`."""
    tiny_minilm(where / "bert", monkeypatch)
    write(where / "wordnet", per_kind)
    wordnet.prepare(where / "wordnet", where / "data", per_kind)
    return where / "data"
