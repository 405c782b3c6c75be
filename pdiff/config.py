"""What each field of a config may hold, and everything that is done with configs as data.

`FIELDS` is the one table: a config with a field that is missing, unknown, of another type or out of
range is refused before any work starts.
"""

import dataclasses
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

from pdiff import files
from pdiff.errors import PdiffError, printable

REMEDY = "delete it, and run the command that started the run again"
CONDITIONS = ("id", "factors", "text", "sentence", "background")
DESCRIBING = ("text", "sentence")  # those that a prompt gives
CORRUPTIONS = ("contrast", "blur", "inversion", "noise", "occlusion", "shear", "scale")
SAMPLERS = ("heun", "posterior_mean", "dpmpp_2m", "ddim", "euler_maruyama", "ancestral")
# Generators that are trained on the same zoo beside pdiff's own.
RIVALS = ("latent_unet", "p_diff", "g_pt", "pca_flow", "latent_kde")


@dataclasses.dataclass(frozen=True)
class Field:
    """Type and range of a field. `each` says that it is a tuple of such values."""

    type: type
    low: float | None = None
    high: float | None = None
    above: float | None = None  # exclusive lower bound
    choices: tuple[str, ...] | None = None
    each: bool = False

    @property
    def most(self) -> float | None:
        """The highest value. Whole numbers become int32 on devices."""
        return 2**31 - 1 if self.type is int and self.high is None else self.high

    def __str__(self) -> str:
        if self.choices:
            what = ", ".join(self.choices)
        else:
            bounds = [f"at least {self.low:g}"] if self.low is not None else []
            bounds += [f"above {self.above:g}"] if self.above is not None else []
            bounds += [f"at most {self.most:.10g}"] if self.most is not None else []
            names = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
            what = " ".join([names[self.type], " and ".join(bounds)]).strip()
        return f"a tuple, each {what}" if self.each else what

    def allows(self, value: Any) -> bool:
        """Whether `value` is of the type and in the range."""
        if self.each:
            single = dataclasses.replace(self, each=False)
            return isinstance(value, tuple) and all(single.allows(v) for v in value)
        if isinstance(value, bool) != (self.type is bool):
            return False
        if not isinstance(value, (int, float) if self.type is float else self.type):
            return False
        if self.type in (int, float):
            # Also of a whole number that no float can hold, and false of NaN.
            if not abs(value) <= sys.float_info.max:
                return False
            return (
                (self.low is None or value >= self.low)
                and (self.most is None or value <= self.most)
                and (self.above is None or value > self.above)
            )
        return self.choices is None or value in self.choices


_COUNT = Field(int, low=1)
_COUNT_OR_NONE = Field(int, low=0)
_RATE = Field(float, above=0, high=1)
_SHARE = Field(float, low=0, high=1)
_POSITIVE = Field(float, above=0)
_NOT_NEGATIVE = Field(float, low=0)

FIELDS: dict[str, Field] = {
    "seed": _COUNT_OR_NONE,
    "tasks.family": Field(str),
    "tasks.data": Field(str),
    "tasks.data_dir": Field(str),
    "tasks.eval_images": _COUNT_OR_NONE,
    "tasks.unseen": Field(str),
    "tasks.num_seen": _COUNT,
    "tasks.num_interp": _COUNT_OR_NONE,
    "tasks.num_unseen": _COUNT_OR_NONE,
    "tasks.num_validation": _COUNT_OR_NONE,
    "tasks.gap_width": _POSITIVE,
    "tasks.num_gaps": _COUNT_OR_NONE,
    "tasks.validation_gaps": Field(float, above=0, each=True),
    "tasks.corruptions": Field(str, choices=CORRUPTIONS, each=True),
    "target.name": Field(str),
    "target.widths": Field(int, low=1, each=True),
    "target.blocks": _COUNT,
    "target.generate": Field(str),
    "target.lora_rank": _COUNT_OR_NONE,
    "target.lora_alpha": _POSITIVE,
    "target.lora_modules": Field(str),
    "zoo.dir": Field(str),
    "zoo.memory_mb": _POSITIVE,
    "zoo.import_mb": _POSITIVE,
    "zoo.seeds_per_task": _COUNT,
    "zoo.reference_seeds": _COUNT,
    "zoo.pretrain_steps": _COUNT,
    "zoo.pretrain_learning_rate": _RATE,
    "zoo.init": Field(str, choices=("base", "random")),
    "zoo.align": Field(str, choices=("none", "weight_matching", "balanced")),
    "zoo.steps": _COUNT,
    "zoo.batch_size": _COUNT,
    "zoo.learning_rate": _RATE,
    "zoo.schedule": Field(str, choices=("constant", "cosine")),
    "zoo.weight_decay": _NOT_NEGATIVE,
    "zoo.keep_last": _COUNT,
    "zoo.keep_every": _COUNT,
    "zoo.chunk_size": _COUNT_OR_NONE,
    "weights.token_dim": _COUNT_OR_NONE,
    "weights.center": Field(str, choices=("mean", "base")),
    "weights.scale": Field(str, choices=("param", "leaf", "global")),
    "mean.width": _COUNT,
    "mean.steps": _COUNT,
    "mean.batch_size": _COUNT,
    "mean.learning_rate": _RATE,
    "mean.functional_weight": _NOT_NEGATIVE,
    "mean.functional_images": _COUNT,
    "mean.base_penalty": _NOT_NEGATIVE,
    "mean.zoo_weight": _NOT_NEGATIVE,
    "refined.of": Field(str, choices=("mean", "zoo")),
    "refined.networks": Field(int, low=2),
    "refined.sentences": _COUNT,
    "refined.vague": _SHARE,
    "subspace.components": _COUNT,
    "subspace.explained": Field(float, above=0, high=1),
    "subspace.token_dim": _COUNT,
    "subspace.networks": Field(int, low=2),
    "model.width": _COUNT,
    "model.depth": _COUNT,
    "model.num_heads": _COUNT,
    "model.mlp_ratio": _POSITIVE,
    "model.dtype": Field(str, choices=("float32", "bfloat16")),
    "model.remat": Field(bool),
    "condition.use": Field(str, choices=CONDITIONS, each=True),
    "condition.drop_id": _SHARE,
    "condition.drop_factors": _SHARE,
    "condition.drop_text": _SHARE,
    "condition.drop_sentence": _SHARE,
    "condition.drop_background": _SHARE,
    "condition.background_noise": _NOT_NEGATIVE,
    "condition.drop_all": _SHARE,
    "condition.text_vocab_size": _COUNT_OR_NONE,
    "condition.text_max_length": _COUNT,
    "condition.text_width": _COUNT,
    "condition.text_depth": _COUNT_OR_NONE,
    "condition.num_harmonics": _COUNT,
    "condition.number_noise": _NOT_NEGATIVE,
    "condition.number_period": _NOT_NEGATIVE,
    "diffusion.path": Field(str, choices=("ve", "vp", "rectified_flow")),
    "diffusion.sigma_min": _POSITIVE,
    "diffusion.sigma_max": _POSITIVE,
    "diffusion.p_mean": Field(float),
    "diffusion.p_std": _POSITIVE,
    "diffusion.at_sigma_max": _SHARE,
    "mesh.model": _COUNT,
    "mesh.fsdp": Field(bool),
    "train.steps": _COUNT,
    "train.batch_size": _COUNT,
    "train.microbatches": _COUNT,
    "train.learning_rate": _RATE,
    "train.warmup_steps": _COUNT_OR_NONE,
    "train.weight_decay": _NOT_NEGATIVE,
    "train.grad_clip": _POSITIVE,
    "train.ema_decay": Field(float, low=0, high=0.999999),
    "train.log_every": _COUNT,
    "train.validate_every": _COUNT,
    "train.checkpoint_every": _COUNT,
    "train.keep_checkpoints": _COUNT,
    "train.wandb": Field(str),
    "sample.samplers": Field(str, choices=SAMPLERS, each=True),
    "sample.num_steps": Field(int, low=4),  # with fewer, Heun's corrector divides by far too small a level
    "sample.rho": _POSITIVE,
    "sample.guidance": _NOT_NEGATIVE,
    "sample.condition": Field(str, choices=CONDITIONS, each=True),
    "sample.batch_size": _COUNT,
    "adapt.num_samples": _COUNT,
    "adapt.steps": _COUNT_OR_NONE,
    "adapt.learning_rates": Field(float, above=0, high=1, each=True),
    "eval.samples_per_task": _COUNT,
    "eval.max_tasks": _COUNT,
    "eval.chunk_size": _COUNT,
    "eval.noise": _NOT_NEGATIVE,
    "eval.rivals": Field(str),
    "eval.rival_steps": _COUNT_OR_NONE,
    "eval.novelty_networks": Field(int, low=3),  # itself, the nearest other, and one more to tell it from
    "eval.mixing_separations": Field(float, above=0, each=True),
    "eval.transfer_pairs": _COUNT_OR_NONE,
    "eval.vague_samples": _COUNT_OR_NONE,
    "eval.vague_prompts": Field(str, each=True),
    "eval.calibration_samples": _COUNT_OR_NONE,
    "eval.adapt_tasks": _COUNT_OR_NONE,
    "eval.adapt_shots": Field(int, low=1, each=True),
    "eval.closeup_tasks": _COUNT_OR_NONE,
}


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
            raise PdiffError(f"config.{name}: missing; start from configs/common.py")
        if not field.allows(values[name]):
            raise PdiffError(f"config.{name}: got {values[name]!r}; allowed: {field}")

    def require(name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise PdiffError(f"config.{name}: got {values[name]!r}; allowed: {allowed}")

    require("model.num_heads", c.model.width % c.model.num_heads == 0, f"a divisor of model.width = {c.model.width}")
    require("target.blocks", c.target.blocks == 1 or c.target.name == "resnet", "1 for all but a resnet")
    require("condition.text_width", c.condition.text_width % 4 == 0, "a multiple of 4, its number of heads")
    require("train.warmup_steps", c.train.warmup_steps < c.train.steps, f"less than train.steps = {c.train.steps}")
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
    given, use = c.sample.condition, c.condition.use
    require("sample.condition", set(given) <= set(use), f"some of condition.use = {use}")
    installed = not c.train.wandb or importlib.util.find_spec("wandb") is not None
    require("train.wandb", installed, "'' unless wandb is installed; pip install -e '.[wandb]'")
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
    """Keeps a config, which `read` reads."""
    files.write_json(path, config.to_dict())


def read(path: Path, remedy: str = REMEDY) -> ConfigDict:
    """The config that `write` kept.

    Raises:
      PdiffError: it is missing or damaged, or a field holds what it may not: who makes a workdir can seal it too.
    """
    made = _restored(files.read_json(path, remedy))
    for name, value in flatten(made).items():
        if name in FIELDS and not FIELDS[name].allows(value):
            raise PdiffError(f"{path}: {name}: got {str(value)[:80]!r}; allowed: {FIELDS[name]}; {remedy}")
    return made


def _restored(values: dict) -> ConfigDict:
    """A locked config of plain JSON: lists are tuples again."""

    def restore(value):
        if isinstance(value, dict):
            return {k: restore(v) for k, v in value.items()}
        return tuple(restore(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(restore(values)).lock()


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
    if path.exists():
        different = difference(config, read(path))
        if different:
            raise PdiffError(
                f"--workdir: {workdir} was made with another config: {'; '.join(different)}; use another --workdir"
            )


def fingerprint(*parts: Any) -> str:
    """16 hex digits of the sha256 of the parts' canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def parse_flags(argv: list[str]) -> list[str]:
    """absl's flag parsing, with every mistake as one line on stderr and exit code 2."""
    try:
        return flags.FLAGS(argv)
    except Exception as e:  # config files are Python: loading one can raise anything
        print(f"pdiff: error: {printable(' '.join(_explain(e, argv).split()))}", file=sys.stderr)
        sys.exit(2)


def _explain(error: Exception, argv: list[str]) -> str:
    for arg in argv[1:]:
        name = arg.lstrip("-").split("=")[0]
        if name.startswith("config.") and name.removeprefix("config.") not in FIELDS:
            return f"--{name}: unknown field{_did_you_mean(name.removeprefix('config.'))}"
        if name.startswith("config.") and name in str(error):
            field = FIELDS[name.removeprefix("config.")]
            return f"--{name}: got {arg.partition('=')[2]!r}; allowed: {field}"
    if isinstance(error, OSError):
        return f"--config: {error.filename or error}: no such file"
    return " ".join(str(error).split()) or type(error).__name__
