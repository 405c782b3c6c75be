"""A user's labelled texts: a file for each class, a text on each line."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from pdiff.errors import PdiffError
from pdiff.tasks.base import Family

ENDING = ".txt"
MOST_BYTES = 1 << 20


def read_support(
    folder: Path, family: Family
) -> tuple[Float[np.ndarray, "texts features"], Int[np.ndarray, " texts"] | None]:
    """The texts in `folder`, as networks of a family whose inputs are texts read them, and their labels.

    CLASS.txt has those of a class, by its name in the family or its number; a single file of another name has texts
    without labels. Empty lines are passed over.

    Raises:
      PdiffError: there is no such folder, a file of it has another name, is too large or no UTF-8, or a text cannot be
        read.
    """
    if not folder.is_dir():
        raise PdiffError(
            f"--support: got {str(folder)!r}, no such folder; allowed: a folder of texts, {_wanted(family)}"
        )
    label_of = {str(i): i for i in range(family.num_classes)} | {name: i for i, name in enumerate(family.classes)}
    paths = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    strange = [p for p in paths if p.suffix != ENDING or p.is_dir() or p.stem not in label_of]
    if strange and not (len(paths) == 1 and paths[0].suffix == ENDING and paths[0].is_file()):
        raise PdiffError(f"--support: {strange[0]}: got it among the texts; allowed: {_wanted(family)}")
    texts, labels = [], []
    for path in paths:
        lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
        texts += lines
        labels += [label_of.get(path.stem, -1)] * len(lines)
    if not texts:
        raise PdiffError(f"--support: {folder}: no text in it; allowed: {_wanted(family)}")
    return family.reads(texts), None if strange else np.array(labels, np.int32)


def _wanted(family: Family) -> str:
    return f"{' and '.join(name + ENDING for name in family.classes)}, a text on each line"


def _text(path: Path) -> str:
    if path.stat().st_size > MOST_BYTES:
        raise PdiffError(f"--support: {path}: got {path.stat().st_size:,} bytes; allowed: at most {MOST_BYTES:,}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise PdiffError(f"--support: {path}: no UTF-8; allowed: texts in UTF-8") from e
