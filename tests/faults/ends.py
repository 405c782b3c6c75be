"""What a run ends with, as digests that have to be the same however often it was stopped.

Left out, and why: times of day, durations and memory (`results.json`, `facts.json`, `timing.json`, and where the pages
print them), the command and the commit, digests over any of these (manifests, `sha256`), Orbax's files, which hold time
stamps (the arrays in them are compared), TensorBoard's events, which are named by time, and the claim.
"""

import hashlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

# Fields of JSON, wherever they stand.
NOT_THE_END = ("created", "commit", "command", "timing", "sha256", "seconds")
WHOLE = ("zoo", "generator", "imported", "config.json", "plots", "rivals")  # compared byte by byte
TIMED = ("facts.json", "results.json", "closeup.json")  # JSON with some of the above
# The numbers on the pages, and the commit, are those of results.json; of the pages all else is compared.
NUMBER = re.compile(rb"\b[0-9a-f]{40}\b|\d[\d.,]*( min \d+)?")


def ends(workdir: Path, copied: Path | None = None) -> dict[str, str]:
    """Digests by name, of all that a finished run must have; pages may name the workdir that it was `copied` from."""
    found = {}
    for path in sorted(p for p in workdir.rglob("*") if p.is_file()):
        name = str(path.relative_to(workdir))
        top = name.split("/")[0]
        if path.name == "manifest.json" and top not in ("zoo", "generator", "imported"):
            continue
        if path.name in TIMED:
            found[name] = _digest(json.dumps(_lasting(json.loads(path.read_text())), sort_keys=True).encode())
        elif top in WHOLE:
            found[name] = _digest(path.read_bytes())
        elif name in ("report.html", "table.md"):
            page = path.read_bytes()
            for place in filter(None, (workdir, copied)):
                page = page.replace(str(place).encode(), b"WORKDIR")
            found[name] = _digest(NUMBER.sub(b"0", page))
        elif name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            lines.sort(key=lambda line: line["step"])  # those of a training that was repeated come last
            kept = [{k: v for k, v in line.items() if k != "steps_per_s"} for line in lines]
            found[name] = _digest(json.dumps(kept).encode())
    return found | _newest_checkpoint(workdir / "mean") | _newest_checkpoint(workdir / "checkpoints")


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Names of what is missing, strange or different."""
    return [n for n in sorted({*expected, *found}) if expected.get(n) != found.get(n)]


def _newest_checkpoint(where: Path) -> dict[str, str]:
    steps = [int(p.name) for p in where.glob("*") if p.name.isdigit()]
    if not steps:
        return {}
    folder = where / str(max(steps))
    found = {}
    with ocp.PyTreeCheckpointer() as reader:
        for part in ("params", "ema", "opt_state"):
            where = (folder / part).absolute()
            stored = reader.metadata(where).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
            tree = reader.restore(where, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                array = np.asarray(leaf)
                said = f"{array.dtype}{array.shape}".encode()
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                found[f"{folder.parent.name}/{folder.name}/{part}/{name}"] = _digest(said + array.tobytes())
    return found


def _lasting(value):
    if isinstance(value, dict):
        return {k: _lasting(v) for k, v in value.items() if k not in NOT_THE_END}
    return [_lasting(v) for v in value] if isinstance(value, list) else value


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
