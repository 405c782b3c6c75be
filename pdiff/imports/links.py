"""Where the file of a network may lie: below the source, or among its repository's blobs in Hugging Face's cache.

That cache keeps models--ORG--NAME/{blobs,refs,snapshots/REVISION}, and a snapshot's files are links into blobs. A link
to anywhere else could bring in a file that nobody meant to give, so it is refused.
"""

from pathlib import Path

from pdiff.errors import PdiffError
from pdiff.imports import arrays

REPOSITORY, SNAPSHOTS, BLOBS = "models--", "snapshots", "blobs"
INDEX = ".safetensors.index.json"  # which names the shards of one network
READ = (".json", ".safetensors", ".txt")  # endings of what is read of a folder that is one network


def inside(source: Path, file: str) -> Path:
    """The path of `file` below `source`; for `FILE.npy#ROW`, that of the file.

    Raises:
      PdiffError: there is nothing, or what is there lies elsewhere, through a link or upwards; so do links in a folder
        that is one network, and those beside the index of shards.
    """
    name, row = row_of(file)
    path = source / name
    _check(source, path)
    if row is not None and (shapes := path.with_name(arrays.SHAPES)).exists():
        _check(source, shapes)
    folder = path if path.is_dir() else path.parent if path.name.endswith(INDEX) else None
    if folder is not None:
        for link in sorted(p for p in folder.iterdir() if p.is_symlink() and p.suffix.lower() in READ):
            try:
                _check(source, link)
            except PdiffError as e:
                raise PdiffError(f"{link.name} {e}") from e
    return path


def row_of(file: str) -> tuple[str, int | None]:
    """'weights.npy' and 12 for 'weights.npy#12', a row of an array of networks; else the file itself and None."""
    path, row = arrays.split_row(Path(file))
    return (file, None) if row is None else (str(path), row)


def is_repository(folder: Path) -> bool:
    """Whether a folder is a model's repository as Hugging Face's cache keeps it."""
    return folder.name.startswith(REPOSITORY) and (folder / SNAPSHOTS).is_dir()


def opened(source: Path) -> Path:
    """The folder of networks that the user means: of a cached repository its snapshot, else `source` itself."""
    return snapshot(source)[0] if is_repository(source) else source


def snapshot(repository: Path) -> tuple[Path, bool]:
    """The only snapshot of a repository, or of several the one that refs/main names; and whether there are several.

    Raises:
      PdiffError: there is none, or there are several and refs/main names none of them.
    """
    revisions = sorted(p for p in (repository / SNAPSHOTS).iterdir() if p.is_dir() and not p.name.startswith("."))
    if not revisions:
        raise PdiffError("has no snapshot; allowed: a repository that was downloaded (hf download)")
    if len(revisions) == 1:
        return revisions[0], False
    main = repository / "refs" / "main"
    name = arrays.text(main).strip() if main.is_file() and not main.is_symlink() else ""
    if (chosen := repository / SNAPSHOTS / name) not in revisions:
        reason = f"has {len(revisions)} snapshots, and refs/main names none of them"
        raise PdiffError(f"{reason}; name the folder of one in a manifest, or delete the others")
    return chosen, True


def _check(source: Path, path: Path) -> None:
    if not path.exists():
        raise PdiffError("does not exist")
    real, root = path.resolve(), source.resolve()
    if not real.is_relative_to(root) and not _own_blob(root / path.relative_to(source), real):
        raise PdiffError(f"leads out of {source}, through a link or '..'; copy the files themselves into it (cp -L)")


def _own_blob(path: Path, real: Path) -> bool:
    """Whether a file of a snapshot leads to a blob of the repository that it lies in.

    `path` begins with the resolved source; if a folder further down were a link, `real` would not begin as `path` does.
    """
    for repository in path.parents:
        below = path.relative_to(repository).parts
        if repository.name.startswith(REPOSITORY) and below[0] == SNAPSHOTS and len(below) > 2:
            return real.parent == repository / BLOBS and real.is_file()
    return False
