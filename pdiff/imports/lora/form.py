"""The one form that adapters of every spelling are brought into, and how each array of it came."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  makes np.dtype("bfloat16") known
import numpy as np
from jaxtyping import Shaped

from pdiff.errors import PdiffError
from pdiff.imports import arrays
from pdiff.imports.arrays import shown

TREE, WHOLE = "lora", "whole"
MOST_RANK = 4096
ADAPTER_METADATA = "lora_adapter_metadata"  # where diffusers keeps the config of each component, as JSON

Arrays = dict[str, Shaped[np.ndarray, "..."]]

# Fields and metadata that say what adapters are for: those of one zoo agree, where two have them.
BASES = ("base_model_name_or_path", "ss_base_model_version", "ss_sd_model_name", "modelspec.architecture")
AGREE = ("task_type", "target_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "fine_tune_type")
SCALES = (ADAPTER_METADATA, "ss_network_dim", "ss_network_alpha", "ss_network_args")
HASHES = ("sshs_", "modelspec.hash")  # of the arrays of one file

CONVERTED = "peft.save_as_lora(folder, model, rank=…) of PEFT 0.19 or newer writes a LoRA that is near it"
OTHER_METHODS = {  # what the names of other methods' arrays hold: the method, and the way on
    ".lora_magnitude_vector": ("DoRA", CONVERTED),
    ".dora_scale": ("DoRA", CONVERTED),
    ".hada_": ("LoHa", CONVERTED),
    ".lokr_": ("LoKr", CONVERTED),
    ".oft_": ("OFT", CONVERTED),
    ".lora_mid": ("a Tucker decomposition (lora_mid)", "train without it"),
    ".lora_B.bias": ("lora_bias", "train without lora_bias"),
    ".lora_up.bias": ("a bias of the adapter's own", "train without it"),
    ".diff_b": ("a whole difference (diff_b)", "save the adapter without it"),
    ".set_weight": ("a whole array (set_weight)", "save the adapter without it"),
    ".lora_a_scales": ("a quantised adapter", "save it before it is quantised"),
    ".trainable_tokens_delta": ("trainable tokens", "train without trainable_token_indices"),
}


@dataclasses.dataclass(frozen=True)
class Array:
    """How an array came: its name, shape and dtype in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Module:
    """An adapted module: its two factors, alpha where the file has it as an array, and scale, by which B A counts."""

    a: Array
    b: Array
    alpha: Array | None
    rank: int
    scale: float
    embedding: bool = False

    @property
    def strength(self) -> int | float:
        """lora_alpha: the scale times the rank, whole where it is."""
        alpha = round(self.scale * self.rank, 9)
        return int(alpha) if alpha == int(alpha) else alpha


@dataclasses.dataclass(frozen=True)
class Adapter:
    """How an adapter came, and so how it is written; JSON by `dataclasses.asdict`, and back by `of`.

    Attributes:
      spelling: 'peft', 'diffusers', 'kohya' or 'mlx'.
      modules: by name, in the tree lora/NAME.
      whole: arrays that replace one of the base's, by name, in the tree whole/NAME.
      config: adapter_config.json, whole; None where it came as a file alone.
      metadata: of the safetensors.
      scaled: whether it says its scale; where not, 1 stands for it.
    """

    spelling: str
    modules: dict[str, Module]
    whole: dict[str, Array]
    config: dict[str, Any] | None
    metadata: dict[str, str]
    scaled: bool = True

    @property
    def rank(self) -> int:
        """The largest of its modules'."""
        return max(m.rank for m in self.modules.values())

    @property
    def scales(self) -> dict[str, float]:
        """By internal path of the module, lora/NAME."""
        return {f"{TREE}/{name}": m.scale for name, m in self.modules.items()}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Adapter":
        """The adapter of which `facts` are the JSON."""

        def array(entry: dict | None) -> Array | None:
            return entry and Array(entry["name"], tuple(entry["shape"]), entry["dtype"])

        def module(entry: dict) -> Module:
            return Module(**entry | {part: array(entry[part]) for part in ("a", "b", "alpha")})

        modules = {name: module(m) for name, m in facts["modules"].items()}
        return cls(**dict(facts) | {"modules": modules, "whole": {n: array(w) for n, w in facts["whole"].items()}})


Network = tuple[Arrays, Adapter, tuple[str, ...]]


def refuse_other_methods(names: Iterable[str]) -> None:
    """Raises PdiffError if arrays are of a method that does more than B A, or other than it."""
    for name in names:
        for part, (method, way) in OTHER_METHODS.items():
            if part in name:
                raise PdiffError(f"{shown(name)} is of {method}, which is not handled; {way}")


def build(
    given: Arrays,
    parts: dict[str, dict[str, str]],
    whole: dict[str, str],
    scale_of: Callable[[str, int, float | None], float],
    transposed: bool = False,
    embeddings: frozenset[str] = frozenset(),
) -> tuple[Arrays, dict[str, Module], dict[str, Array]]:
    """The internal form of arrays by name.

    Args:
      parts: by module, the names of its 'A', 'B' and, where there is one, 'alpha'.
      whole: by internal name, the names of whole arrays.
      scale_of: (module, rank, alpha or None) -> scale.
      transposed: A is (inputs, r) and B is (r, outputs), as in MLX.

    Raises:
      PdiffError: one of a pair is missing, or shapes do not fit.
    """
    used = [n for names in parts.values() for part, n in names.items() if part != "alpha"] + list(whole.values())
    arrays.check_floats({name: given[name] for name in used})
    tree: Arrays = {}
    modules: dict[str, Module] = {}
    for module, names in sorted(parts.items()):
        if "/" in module or not module.strip(". "):
            raise PdiffError(f"the module {shown(module)}; allowed: a name without '/'")
        if missing := {"A", "B"} - set(names):
            (there,) = {"A", "B"} - missing or {"alpha"}
            raise PdiffError(f"{shown(module)} has a lora_{there} alone")
        a, b = given[names["A"]], given[names["B"]]
        rank, flat_a, flat_b = _factors(module, a, b, transposed)
        alpha = given[names["alpha"]] if "alpha" in names else None
        scale = float(scale_of(module, rank, None if alpha is None else _alpha(names["alpha"], alpha)))
        tree |= {f"{TREE}/{module}/A": flat_a, f"{TREE}/{module}/B": flat_b}
        came = {part: _came(name, given[name]) for part, name in names.items()}
        modules[module] = Module(came["A"], came["B"], came.get("alpha"), rank, scale, module in embeddings)
    tree |= {f"{WHOLE}/{name}": given[n] for name, n in whole.items()}
    return tree, modules, {name: _came(n, given[n]) for name, n in sorted(whole.items())}


def _came(name: str, value: np.ndarray) -> Array:
    return Array(name, tuple(value.shape), str(value.dtype))


def _factors(module: str, a: np.ndarray, b: np.ndarray, transposed: bool) -> tuple[int, np.ndarray, np.ndarray]:
    """The rank, A (r, inputs * window) and B (outputs, r) of arrays as they came."""
    if transposed:
        a, b = a.T, b.T
    if not 2 <= a.ndim <= (2 if transposed else 5) or a.ndim != b.ndim and b.ndim != 2:
        what = "; layers of experts are not handled" if transposed and a.ndim == 3 else ""
        raise PdiffError(f"lora_A and lora_B of {shown(module)} have shapes {a.shape} and {b.shape}{what}")
    rank = a.shape[0]
    if b.shape[1] != rank:
        groups = "; convolutions in groups are not handled" if b.ndim > 2 and rank % b.shape[1] == 0 else ""
        allowed = f"({rank}, outputs)" if transposed else f"(outputs, {rank})"
        given = b.T.shape if transposed else b.shape
        raise PdiffError(f"lora_B of {shown(module)} has shape {given}; allowed: {allowed}{groups}")
    if any(n != 1 for n in b.shape[2:]):
        raise PdiffError(f"lora_B of {shown(module)} has shape {b.shape}; allowed: a window of 1")
    if rank > MOST_RANK:
        raise PdiffError(f"lora_A of {shown(module)} has rank {rank}; allowed: at most {MOST_RANK}")
    return rank, a.reshape(rank, -1), b.reshape(b.shape[:2])


def _alpha(name: str, value: np.ndarray) -> float:
    if value.size != 1:
        raise PdiffError(f"{shown(name)} has shape {value.shape}; allowed: one number")
    alpha = float(value.reshape(()).astype(np.float64))
    if not 0 < alpha < 1e6:
        raise PdiffError(
            f"{shown(name)} is {alpha:g}, which some read as the rank and others as it stands; allowed: > 0"
        )
    return alpha


def leaves(adapter: Adapter) -> dict[str, Array]:
    """By internal path, how each array came."""
    pairs = {f"{TREE}/{n}/{k}": getattr(m, k.lower()) for n, m in adapter.modules.items() for k in "AB"}
    return pairs | {f"{WHOLE}/{n}": w for n, w in adapter.whole.items()}


def names(adapter: Adapter) -> dict[str, str]:
    """By internal path, the name that each array came with."""
    return {path: array.name for path, array in leaves(adapter).items()}


def is_whole(path: str) -> bool:
    """Whether an internal path is that of a whole array beside an adapter."""
    return path.startswith(f"{WHOLE}/")


def as_spelled(network: Arrays, adapter: Adapter) -> Arrays:
    """The arrays of a network, by internal path, as `adapter` came: names, shapes, dtypes, with each alpha.

    Raises:
      PdiffError: the network is not of these modules, or not of these ranks.
    """
    spelled = {}
    for path, came in leaves(adapter).items():
        if path not in network:
            raise PdiffError(f"leaf {path!r} was imported and is not generated; allowed: networks of the run's own")
        value = network[path].T if adapter.spelling == "mlx" and not is_whole(path) else network[path]
        if value.size != math.prod(came.shape):
            raise PdiffError(f"leaf {path!r} has shape {value.shape}; allowed: that of {came.shape}")
        spelled[came.name] = value.reshape(came.shape).astype(np.dtype(came.dtype))
    for module in adapter.modules.values():
        if module.alpha is not None:
            dtype, alpha = np.dtype(module.alpha.dtype), module.scale * module.rank
            value = np.rint(alpha) if dtype.kind in "iu" else alpha
            spelled[module.alpha.name] = np.full(module.alpha.shape, value).astype(dtype)
    return spelled


def differing(a: Adapter, b: Adapter) -> list[str]:
    """Why two adapters cannot be in one zoo: each field with both values, that of `a` first."""
    if a.spelling != b.spelling:
        return [f"is an adapter as of {a.spelling}, not as of {b.spelling}"]
    mine, others = _facts(a), _facts(b)
    known = [n for n in BASES if mine.get(n) and others.get(n)] + list(AGREE)
    lines = [f"{n} is {shown(mine.get(n))}, not {shown(others.get(n))}" for n in known if mine.get(n) != others.get(n)]
    both = [(n, a.modules[n], b.modules[n]) for n in a.modules if n in b.modules]
    if ranks := [(n, x.rank, y.rank) for n, x, y in both if x.rank != y.rank]:
        name, rank, other = ranks[0]
        largest = max(max(x, y) for _, x, y in ranks)
        lines.append(
            f"the rank of {shown(name)} is {rank}, not {other} ({len(ranks)} such modules); "
            f"--config.zoo.rank={largest} brings all to that rank, without loss where theirs is no larger"
        )
    if scales := [
        (n, x, y) for n, x, y in both if x.rank == y.rank and not math.isclose(x.scale, y.scale, rel_tol=1e-6)
    ]:
        name, x, y = scales[0]
        lines.append(
            f"the scale of {shown(name)} is {x.scale:g}, not {y.scale:g} ({len(scales)} such modules); "
            f"--config.zoo.rank={x.rank} counts each scale into its adapter"
        )
    return lines


def _facts(adapter: Adapter) -> dict[str, Any]:
    """What an adapter says of itself, from its config and its metadata."""
    facts: dict[str, Any] = dict(adapter.metadata) | (adapter.config or {})
    if adapter.spelling == "mlx" and isinstance(facts.get("model"), str):
        facts["base_model_name_or_path"] = facts["model"]
    facts |= {n: v for c in component_configs(adapter.metadata).values() for n, v in c.items() if n in BASES}
    return {n: sorted(v, key=str) if isinstance(v, list) else v for n, v in facts.items()}


def base_of(adapter: Adapter) -> str | None:
    """The base model that an adapter names, as PEFT and MLX name one."""
    name = _facts(adapter).get("base_model_name_or_path")
    return name if isinstance(name, str) else None


def component_configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What diffusers keeps in metadata of each component, as PEFT's adapter_config.json; '' is a file of one.

    Raises:
      PdiffError: it is no such JSON.
    """
    if ADAPTER_METADATA not in metadata:
        return {}
    try:
        fields = arrays.parse_json(metadata[ADAPTER_METADATA])
        if not isinstance(fields, dict):
            raise PdiffError("is no JSON object")
    except PdiffError as e:
        raise PdiffError(f"{ADAPTER_METADATA} {e}") from e
    configs: dict[str, dict[str, Any]] = {}
    for name, value in fields.items():
        component, _, field = name.rpartition(".")
        configs.setdefault(component, {})[field] = value
    return configs


def with_component_configs(metadata: dict[str, str], configs: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """`metadata` with these configs in it, as diffusers 0.34 and newer writes them."""
    fields = {f"{c}.{n}" if c else n: v for c, config in configs.items() for n, v in config.items()}
    return metadata | {ADAPTER_METADATA: json.dumps(fields, indent=2, sort_keys=True)}


def carried(adapter: Adapter) -> dict[str, str]:
    """Metadata that another spelling takes over: what does not say the scale in the words of this one."""
    return {"format": "pt"} | {n: v for n, v in adapter.metadata.items() if n not in SCALES}


def shared(first: Adapter, other: Adapter) -> Adapter:
    """`first` with that metadata alone which holds of `other` too. What says the scale stays: there they agree."""
    same = {n: v for n, v in first.metadata.items() if n in SCALES or other.metadata.get(n) == v}
    return dataclasses.replace(first, metadata={n: v for n, v in same.items() if not n.startswith(HASHES)})
