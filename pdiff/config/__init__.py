"""Configs as data: their fields (`fields`), what must hold between them, and how they are kept in files.

A config with a field that is missing, unknown, of another type or out of range is refused before any work starts.
"""

import difflib
import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from pdiff.config.fields import FIELDS, RIVALS
from pdiff.errors import PdiffError, complain
from pdiff.system import files

NOT_THE_ZOO = ("dir", "memory_mb", "import_mb", "chunk_size")  # fields of `zoo` for where it lies and how it is made
REMEDY = "delete it, and run the command that started the run again"


def validate(config: ConfigDict) -> None:
    """Checks every field and what holds between them.

    Raises:
      PdiffError: names the first bad field, its value and what is allowed.
    """
    values, c = flatten(config), config
    for name in values:
        if name not in FIELDS:
            raise PdiffError(f"config.{name}: unknown field{_did_you_mean(name)}")
    for name, field in FIELDS.items():
        if name not in values:
            raise PdiffError(f"config.{name}: missing; start from pdiff.config.defaults()")
        if not field.allows(values[name]):
            raise PdiffError(f"config.{name}: got {values[name]!r}; allowed: {field}")

    def require(name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise PdiffError(f"config.{name}: got {values[name]!r}; allowed: {allowed}")

    require("model.num_heads", c.model.width % c.model.num_heads == 0, f"a divisor of model.width = {c.model.width}")
    require("target.blocks", c.target.blocks == 1 or c.target.name == "resnet", "1 for all but a resnet")
    require("condition.text_width", c.condition.text_width % 4 == 0, "a multiple of 4, its number of heads")
    require(
        "train.warmup_steps", c.train.warmup_steps < c.train.steps, f"less than train.steps = {c.train.steps}; set both"
    )
    highest, parts = c.diffusion.sigma_max, c.subspace.components
    require("diffusion.sigma_min", c.diffusion.sigma_min < highest, f"less than diffusion.sigma_max = {highest:g}")
    burn_in = (c.zoo.keep_last - 1) * c.zoo.keep_every
    few = f"so few that (keep_last - 1) * keep_every < zoo.steps = {c.zoo.steps}"
    require("zoo.keep_last", burn_in < c.zoo.steps, few)
    require("subspace.token_dim", parts % c.subspace.token_dim == 0, f"a divisor of subspace.components = {parts}")
    some_loss = c.mean.functional_weight > 0 or c.mean.zoo_weight > 0
    require("mean.zoo_weight", some_loss, "above 0 where mean.functional_weight is 0: nothing else would be learned")
    rest = 1 - c.condition.drop_all
    require("refined.vague", c.refined.vague <= rest, f"at most 1 - condition.drop_all = {rest:g}")
    for name in ("tasks.corruptions", "condition.use", "sample.condition", "sample.samplers", "adapt.learning_rates"):
        require(name, len(set(values[name])) == len(values[name]) > 0, "at least one, each once")
    use = c.condition.use
    require("sample.condition", set(c.sample.condition) <= set(use), f"some of condition.use = {use}")
    installed = not c.train.wandb or importlib.util.find_spec("wandb") is not None
    require("train.wandb", installed, "'' unless wandb is installed; pip install -e '.[wandb]'")
    for name in ("tasks.num_unseen", "tasks.num_validation"):
        require(name, values[name] >= 0 or c.tasks.family == "folder", "at least 0; -1 with tasks.family=folder alone")
    of_import = c.zoo.align != "balanced" or c.tasks.family == "imported"
    require("zoo.align", of_import, "balanced with tasks.family=imported alone")
    rivals(c.eval.rivals)
    for field in ("generate", "lora_modules"):
        try:
            re.compile(c.target[field])
        except re.error as e:
            raise PdiffError(f"config.target.{field}: got {c.target[field]!r}, not a regular expression: {e}") from e


def rivals(text: str) -> tuple[str, ...]:
    """The names in `eval.rivals`, in their own order: '' is none, 'all' is all.

    Raises:
      PdiffError: a name is not one of RIVALS.
    """
    names = RIVALS if text.strip() == "all" else [n.strip() for n in text.split(",") if n.strip()]
    for name in names:
        if name not in RIVALS:
            raise PdiffError(f"config.eval.rivals: got {text!r}; allowed: all, or some of {','.join(RIVALS)}")
    return tuple(n for n in RIVALS if n in names)


def _did_you_mean(name: str) -> str:
    close = difflib.get_close_matches(name, FIELDS, 1, 0.5)
    return f"; did you mean {close[0]}?" if close else f"; allowed: {', '.join(FIELDS)}"


def flatten(config: ConfigDict) -> dict[str, Any]:
    """{'train.steps': 3000, …}"""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{name}.{k}": v for k, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def to_json(config: ConfigDict) -> str:
    """Canonical JSON: sorted keys, tuples as lists."""
    return json.dumps(config.to_dict(), sort_keys=True, indent=1)


def write(path: Path, config: ConfigDict) -> None:
    """Writes a config for `read`."""
    files.write_json(path, config.to_dict())


def read(path: Path, remedy: str = REMEDY) -> ConfigDict:
    """The config that `write` wrote. Fields that are newer than the file have their defaults, by which nothing changes.

    Raises:
      PdiffError: it is missing or damaged, or a field has a value that is not allowed: who makes a workdir can write
        its digests too.
    """
    kept = _with_tuples(files.read_json(path, remedy))
    for name, field in FIELDS.items():
        part, _, leaf = name.rpartition(".")
        (kept.setdefault(part, {}) if part else kept).setdefault(leaf, field.default)
    config = ConfigDict(kept).lock()
    for name, value in flatten(config).items():
        if name in FIELDS and not FIELDS[name].allows(value):
            raise PdiffError(f"{path}: {name}: got {str(value)[:80]!r}; allowed: {FIELDS[name]}; {remedy}")
    return config


def _with_tuples(value: Any) -> Any:
    """A value of JSON, its lists as tuples."""
    if isinstance(value, dict):
        return {k: _with_tuples(v) for k, v in value.items()}
    return tuple(_with_tuples(v) for v in value) if isinstance(value, list) else value


def difference(here: ConfigDict, there: ConfigDict) -> list[str]:
    """One line for each field that is not the same in two configs, the layout over devices (`mesh`) left aside."""
    a, b = flatten(here), flatten(there)
    return [
        f"{k} is {a.get(k, 'absent')!r} here and {b.get(k, 'absent')!r} there"
        for k in sorted(a.keys() | b.keys())
        if not k.startswith("mesh.") and (k not in a or k not in b or a[k] != b[k])
    ]


def check_same(config: ConfigDict, workdir: Path) -> None:
    """Raises PdiffError, naming the fields, if `workdir` was made with another config."""
    path = workdir / "config.json"
    if path.exists() and (different := "; ".join(difference(config, read(path)))):
        raise PdiffError(f"--workdir: {workdir} was made with another config: {different}; use another --workdir")


def fingerprint(*parts: Any) -> str:
    """16 hex digits of the sha256 of the parts' canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def shapes_zoo(field: str) -> bool:
    """Whether a field, by name, is in `zoo_fingerprint`."""
    part, _, leaf = field.partition(".")
    return part in ("tasks", "target", "seed") or (part == "zoo" and leaf not in NOT_THE_ZOO)


def zoo_fingerprint(config: ConfigDict) -> str:
    """Hash of everything in a run's config that shapes its zoo."""
    zoo = {k: v for k, v in config.zoo.items() if shapes_zoo(f"zoo.{k}")}
    return fingerprint(config.tasks.to_dict(), config.target.to_dict(), zoo, config.seed)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's flag parsing, with every mistake as one line on stderr and exit code 2."""
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
            flags.FLAGS["config"].value.to_dict()  # raises only now what went wrong as the file was loaded
        return rest
    except Exception as e:  # config files are Python: loading one can raise anything
        complain(" ".join(_explain(e, argv).split()))
        sys.exit(2)


def _explain(error: Exception, argv: list[str]) -> str:
    for arg in argv[1:]:
        name, _, value = arg.lstrip("-").partition("=")
        field = name.removeprefix("config.")
        if field != name and field not in FIELDS:
            return f"--{name}: unknown field{_did_you_mean(field)}"
        if field != name and name in str(error):
            return f"--{name}: got {value!r}; allowed: {FIELDS[field]}"
    if isinstance(error, OSError):
        path = next((a.partition("=")[2] for a in argv if re.match("--?config=", a)), error.filename)
        return f"--config: got {path!r}, which cannot be read; allowed: a scenario's path, such as configs/interp.py"
    return " ".join(str(error).split()) or type(error).__name__
