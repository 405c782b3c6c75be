"""What the networks of a source started from, if it lies there under the name `base`.

Of plain networks it is one of the same arrays, perhaps with more around them. Of adapters it is the adapter that all of
them started from; the model that they adapt is not needed, and is left out with a line.
"""

from pathlib import Path

from pdiff.errors import PdiffError
from pdiff.imports import arrays, folders, lora

ALLOWED = (
    f"base may be {', '.join(f'base{e}' for e in arrays.FILES)}, or a folder base of Orbax, of an adapter, or with "
    "config.json and model.safetensors"
)


def file_of(source: Path) -> str | None:
    """The base below `source`, as the `file` of a row would name it; None if there is none.

    Raises:
      PdiffError: there are two, or it is a folder without a network.
    """
    names = [name for name in folders.BASES if (source / name).exists()]
    if not names:
        return None
    if len(names) > 1:
        raise PdiffError(f"{source}: holds {' and '.join(names)}; allowed: one base")
    path = source / names[0]
    own = folders.network_of(path) if path.is_dir() else path
    if own is None:
        raise PdiffError(f"{path}: is a folder without a network; {ALLOWED}")
    return str(own.relative_to(source))


def left_out(source: Path) -> str | None:
    """Why the base of adapters is not read, by its names alone: it is the whole model. None if it may be an adapter."""
    try:
        file = file_of(source)
    except PdiffError as e:
        return of_adapters(str(e))
    if file is None or lora.is_adapter(source / file) or "/" not in file and (source / file).is_file():
        return None
    return of_adapters(f"{source / file} is no adapter")


def of_adapters(why: str) -> str:
    """What is told of a base that adapters cannot have started from."""
    return (
        f"base is left out: {why}; for adapters, base may be the adapter that all of them started from (a folder base "
        "like theirs, or one file); the model that they adapt is not needed"
    )
