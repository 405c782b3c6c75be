"""Which networks lie in a folder, one for each row, and what lies there and is left out.

An entry of the source is a task. It is a network itself, or a folder of networks, its seeds. Nothing is read here but
names, and pickles are not even opened.
"""

import dataclasses
import re
from collections import defaultdict
from pathlib import Path

from pdiff.errors import Faults, PdiffError, some
from pdiff.imports import arrays, links, lora
from pdiff.imports.arrays import shown
from pdiff.system import files

DESCRIPTION = "description.txt"
MOST_WORDINGS, LONGEST_TEXT, MOST_ROWS = 32, 1000, 100_000
DEEPEST = 3  # folders below the source: a task, a seed of it, the network itself
BASES = (*(f"base{ending}" for ending in arrays.FILES), "base")
ADAPTER_FILES = (lora.CONFIG, *lora.FILES, "adapter_model.bin")
MODELS = ("model", "diffusion_pytorch_model")  # as transformers and diffusers call the weights beside config.json
SHARD = re.compile(r".+-\d{5}-of-\d{5}\.safetensors", re.I)
STEP = re.compile(r"checkpoint[-_]\d+", re.I)
STATE = re.compile(  # of a training, which is no network
    r"(training_args|optimizer|(lr_)?scheduler|scaler|rng_state|random_states|sampler|custom_checkpoint)[\w.-]*", re.I
)
TOOLS = ("__MACOSX", "__pycache__", "logs", "mlruns", "runs", "tensorboard", "wandb")  # folders of other tools
UNREAD = (".gguf", ".onnx", ".tflite", ".pb")

# What is told of what is left out, before the names.
NOTHING = "left out, no network lies in"
BELOW = "left out, below the folder of another network (put it beside that one to import it)"
BESIDE = "left out, beside the network of the folder"
CHECKPOINTS = "left out, checkpoints of a run whose last network is there"
DEEPER = f"left out, more than {DEEPEST} folders below the source"
PICKLED = "left alone, pickles beside networks"
STRANGE = "left out, not of a format that is read"
STEPS = "steps of one run, not seeds, are taken as the networks of one task"
ITSELF = "left out, the network that the source itself is beside its tasks"
REVISIONS = "of several snapshots, that of refs/main is taken"

Left = defaultdict[str, list[str]]  # by what is told of them


@dataclasses.dataclass(frozen=True)
class Row:
    """One network: its path below the source, and its entries; an absent one is '', (), {} or None."""

    file: str  # or FILE#ROW
    task: str = ""
    descriptions: tuple[str, ...] = ()
    factors: dict[str, float] = dataclasses.field(default_factory=dict)
    accuracy: float | None = None
    split: str = ""
    line: str = ""  # of the manifest, for messages


@dataclasses.dataclass(frozen=True)
class Listing:
    """The networks of a source, and a line on all that was left out or read otherwise than it was written."""

    rows: list[Row]
    notes: tuple[str, ...] = ()


def by_folders(source: Path) -> Listing:
    """A row for each network of `source`, by the names of its folders and files.

    Raises:
      PdiffError: there is none, or the source itself is one.
      Faults: pickles lie in the place of networks, or a description cannot be read.
    """
    left: Left = defaultdict(list)
    networks: list[Row] = []
    faults: list[str] = []
    try:
        own = network_of(source)
    except PdiffError as e:
        raise PdiffError(f"{source}: {e}") from e
    parts = () if own is None else _parts(source, own)
    for entry in (p for p in _entries(source) if p.name not in (*BASES, *parts)):
        try:
            networks += _task(source, entry, left)
        except (PdiffError, OSError) as e:
            faults.append(f"{entry.name}: {e}")
    if faults:
        raise Faults(str(source), faults)
    if own is not None and not networks:
        raise PdiffError(f"--source: {source} is itself one network; allowed: a folder with a network for each task")
    if own is not None:
        left[ITSELF] += sorted(n for n in parts if (source / n).exists())
    if not networks:
        lines = "".join(f"; {line}" for line in told(left))
        raise PdiffError(f"{source}: holds no networks{lines}; see docs/importing.md for how they may lie there")
    return Listing(networks, told(left))


def told(left: Left) -> tuple[str, ...]:
    """A line for each thing that is told, with the first of its names."""
    return tuple(f"{what}: {some(map(shown, names))}" for what, names in left.items())


def network_of(folder: Path) -> Path | None:
    """The one network that a folder is: itself (LoRA, Orbax, shards), or the file or index of a whole model in it.

    Raises:
      PdiffError: there are several such indices, or trees that Orbax saved.
    """
    if lora.is_adapter(folder):
        return folder
    if (folder / "config.json").exists():
        named = [folder / f"{n}{ending}" for ending in (".safetensors", links.INDEX) for n in MODELS]
        if whole := [p for p in named if p.exists()]:
            return whole[0]
    return folder if arrays.kind_of(folder) is not None else None


def placed(source: Path, file: str, left: Left) -> str:
    """The network that a manifest means by `file`, as `by_folders` would name it.

    A file in the folder of an adapter stands for the folder, the folder of a whole model for the file in it, and a
    repository of Hugging Face's cache for a snapshot of it. What is not there stays as it is.

    Raises:
      PdiffError: it is a part of a network, or no row of the array.
    """
    name, row = links.row_of(file)
    path = source / name
    if row is not None:
        count = _rows_in(path)
        if count is not None and row >= count:
            raise PdiffError(f"file {shown(file)}; allowed: rows 0 to {count - 1}")
        return f"{name}#{row}"
    if SHARD.fullmatch(path.name):
        raise PdiffError(f"file {shown(file)} is a part of a network; allowed: its folder, or its *{links.INDEX}")
    if _rows_in(path) is not None:
        raise PdiffError(f"file {shown(file)} has a network in each row; allowed: {file}#ROW, from {file}#0 on")
    if path.name in ADAPTER_FILES and lora.is_adapter(path.parent) and path.parent != source:
        path = path.parent
    if path.is_dir():
        path = _snapshot(path, left) if links.is_repository(path) else path
        path = network_of(path) or path
    return str(path.relative_to(source))


def task_of(file: str) -> str:
    """The name of a task: the first folder below the source, or the file itself; ORG--NAME for a cached repository."""
    name, row = links.row_of(file)
    first, *below = Path(name).parts
    if row is not None and not below:
        return f"row_{row:05d}"
    alone = arrays.stem_of(first)  # strength_0.5 is a folder, and stays
    return (first if below else alone).removeprefix(links.REPOSITORY)


def _task(source: Path, entry: Path, left: Left) -> list[Row]:
    """The networks of one entry of the source."""
    task = task_of(str(entry.relative_to(source)))
    if entry.is_dir():
        folder = _snapshot(entry, left) if links.is_repository(entry) else entry
        paths = _networks(source, folder, 1, left)
        if not paths:
            left[NOTHING].append(entry.name)
        wordings = _wordings(source, folder) if paths else ()
        return [Row(str(p.relative_to(source)), task, wordings) for p in paths]
    ending = entry.suffix.lower()
    if (count := _rows_in(entry)) is not None:
        file = str(entry.relative_to(source))
        return [Row(f"{file}#{i}", task_of(f"{entry.name}#{i}")) for i in range(count)]
    if SHARD.fullmatch(entry.name):
        raise PdiffError(_lone_shard(entry))
    if arrays.kind_of(entry) is not None:
        return [Row(str(entry.relative_to(source)), task)]
    if ending in arrays.PICKLES and not STATE.fullmatch(entry.name):
        if not any(entry.with_suffix(e).exists() for e in arrays.FILES):
            raise PdiffError(_pickled(source, entry))
        left[PICKLED].append(entry.name)
    if ending in UNREAD:
        left[STRANGE].append(entry.name)
    return []


def _networks(source: Path, folder: Path, depth: int, left: Left) -> list[Path]:
    """The networks in a folder and below it: the one that it is, or all of them; what is left out goes to `left`."""
    entries = _entries(folder)
    inner = [p for p in entries if p.is_dir()]
    loose = [p for p in entries if not p.is_dir() and arrays.kind_of(p) is not None]
    pickles = [p for p in entries if p.suffix.lower() in arrays.PICKLES and not STATE.fullmatch(p.name)]

    def leave(what: str, paths: list[Path]) -> None:
        if paths:
            left[what] += [str(p.relative_to(source)) for p in paths]

    own = network_of(folder)
    if own is not None:
        holding = [p for p in inner if arrays.kind_of(folder) != "orbax" and _holds(p, depth + 1)]
        leave(CHECKPOINTS, [p for p in holding if STEP.fullmatch(p.name)])
        leave(BELOW, [p for p in holding if not STEP.fullmatch(p.name)])
        parts = _parts(folder, own)
        leave(BESIDE, [p for p in loose if p.name not in parts])
        leave(PICKLED, [p for p in pickles if p.name not in parts])
        return [own]
    if shards := [p for p in loose if SHARD.fullmatch(p.name)]:
        raise PdiffError(_lone_shard(shards[0]))
    if depth == DEEPEST:
        leave(DEEPER, [p for p in inner if _holds(p, depth + 1)])
        inner = []
    below = {p: _networks(source, p, depth + 1, left) for p in inner}
    steps = [p for p in below if below[p] and STEP.fullmatch(p.name)]
    if steps and (loose or any(below[p] for p in below if p not in steps)):
        leave(CHECKPOINTS, steps)
        below = {p: networks for p, networks in below.items() if p not in steps}
    elif len(steps) > 1:
        left[STEPS].append(f"{folder.relative_to(source)} ({some(p.name for p in steps)})")
    networks = sorted([*loose, *(n for networks in below.values() for n in networks)])
    if networks:
        leave(PICKLED, pickles)
    elif pickles and not set(folder.relative_to(source).parts) & set(TOOLS):
        raise PdiffError(_pickled(source, pickles[0]))
    return networks


def _parts(folder: Path, own: Path) -> tuple[str, ...]:
    """The names in a folder that belong to the one network that it is."""
    if lora.is_adapter(folder):
        return ADAPTER_FILES
    names = [p.name for p in folder.iterdir()]
    if own == folder:
        return tuple(n for n in names if n.endswith(links.INDEX) or SHARD.fullmatch(n))
    beginning = f"{own.name.removesuffix(links.INDEX)}-"
    return (own.name, *(n for n in names if n.startswith(beginning) and SHARD.fullmatch(n)))


def _holds(folder: Path, depth: int) -> bool:
    """Whether a network lies in a folder or not far below it."""
    try:
        if network_of(folder) is not None:
            return True
    except PdiffError:  # several of them
        return True
    entries = _entries(folder)
    if any(not p.is_dir() and arrays.kind_of(p) is not None for p in entries):
        return True
    return depth <= DEEPEST + 1 and any(p.is_dir() and _holds(p, depth + 1) for p in entries)


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, but for what is hidden, or what pdiff leaves beside networks that it has generated."""
    beside = (files.SUMS, "pdiff.json")
    entries = (p for p in folder.iterdir() if p.name not in beside and p.suffix != f".{files.DIGEST}")
    return sorted(p for p in entries if not p.name.startswith("."))


def _snapshot(repository: Path, left: Left) -> Path:
    path, several = links.snapshot(repository)
    if several:
        left[REVISIONS].append(f"{repository.name} ({path.name})")
    return path


def _rows_in(path: Path) -> int | None:
    """How many networks lie in the rows of a file with shapes.json beside it; None for any other."""
    shapes = path.parent / arrays.SHAPES
    if not path.is_file() or not shapes.is_file():
        return None
    count = arrays.rows_of(path, shapes)
    if count is not None and not 0 < count <= MOST_ROWS:
        raise PdiffError(f"has {count} rows; allowed: a row for each network, at most {MOST_ROWS}")
    return count


def _lone_shard(path: Path) -> str:
    return f"{path.name} is a part of one network, whose *{links.INDEX} is not there; bring all of its parts and that"


def _pickled(source: Path, path: Path) -> str:
    way = f"python -m pdiff.convert --source={source} --out=DIR makes safetensors of it"
    return f"{path.name} is a pickle in the place of a network, which could run anything if it were read; {way}"


def _wordings(source: Path, folder: Path) -> tuple[str, ...]:
    """The lines of a folder's description.txt, if it has one."""
    path = folder / DESCRIPTION
    if not path.exists():
        return ()
    try:
        content = arrays.text(links.inside(source, str(path.relative_to(source))))
        lines = [words("line", line) for line in content.splitlines() if line.strip()]
    except PdiffError as e:
        raise PdiffError(f"{DESCRIPTION} {e}") from e
    if not 0 < len(lines) <= MOST_WORDINGS:
        raise PdiffError(f"{DESCRIPTION} has {len(lines)} lines; allowed: 1 to {MOST_WORDINGS}, a wording on each")
    return tuple(dict.fromkeys(lines))


def words(name: str, value: object) -> str:
    """A text of a person, such as a description, without spaces around it.

    Raises:
      PdiffError: it is none, too long, or not printable.
    """
    if not isinstance(value, str) or not value.strip() or not value.strip().isprintable() or len(value) > LONGEST_TEXT:
        raise PdiffError(f"{name} {shown(value)}; allowed: a text of at most {LONGEST_TEXT} printable characters")
    return value.strip()
