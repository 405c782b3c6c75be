"""The parts of a diffusion pipeline that an adapter belongs to, and their names in each spelling.

diffusers has dotted names below the component (unet.down_blocks.0.…to_q), kohya underscored ones (lora_unet_down_
blocks_0_…to_q). Dots are put back by the words that such names are made of; a name with any other word is not guessed.
kohya trains SDXL's UNet under the names of its first release (input_blocks.4.1), whose numbers are counted otherwise.
"""

import re
from collections.abc import Mapping

from pdiff.errors import PdiffError
from pdiff.imports.arrays import shown
from pdiff.imports.lora.form import Adapter, Array, Module

COMPONENTS = (
    "unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3", "diffusion_model",
    "prior", "controlnet",
)  # fmt: skip
KOHYA = {"lora_unet": "unet", "lora_te1": "text_encoder", "lora_te2": "text_encoder_2", "lora_te": "text_encoder"}
# Components of a PEFT folder are known by what their modules' names begin with.
BEGINNINGS = {
    "unet": ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "time_embedding", "add_embedding"),
    "transformer": ("transformer_blocks", "single_transformer_blocks"),
}
# The words of UNet2DConditionModel and of CLIP's text models, but for numbers.
WORDS = (
    "down_blocks", "mid_block", "up_blocks", "attentions", "resnets", "downsamplers", "upsamplers",
    "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out", "add_k_proj", "add_v_proj", "ff", "net",
    "proj", "proj_in", "proj_out", "conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut", "time_emb_proj",
    "time_embedding", "add_embedding", "linear_1", "linear_2",
    "text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "mlp", "fc1", "fc2",
    "text_projection",
)  # fmt: skip
_WORD = re.compile(rf"(?:{'|'.join(sorted(WORDS, key=len, reverse=True))}|\d+)(?=_|$)")
SDXL_BLOCKS = 3  # of input_blocks and output_blocks for each of down_blocks and up_blocks
SDXL = {  # in each block of the first release's UNet, and outside of them
    "in_layers_2": "conv1", "out_layers_3": "conv2", "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}  # fmt: skip
SDXL_ALONE = {
    "input_blocks_0_0": "conv_in", "out_2": "conv_out", "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2", "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}  # fmt: skip


def of(adapter: Adapter) -> dict[str, tuple[str, str]]:
    """By module of an adapter: its component, '' where that is not known, and its dotted name in it.

    Raises:
      PdiffError: names of kohya's cannot be told apart into parts for sure.
    """
    split = {"kohya": lambda name: of_kohya(name, adapter.metadata), "diffusers": of_diffusers}
    one = split.get(adapter.spelling, lambda name: ("", name))
    return {name: one(name) for name in adapter.modules}


def of_diffusers(name: str) -> tuple[str, str]:
    """The component and the rest of a dotted name; '' where it names none."""
    first, _, rest = name.partition(".")
    return (first, rest) if first in COMPONENTS and rest else ("", name)


def of_kohya(name: str, metadata: Mapping[str, str]) -> tuple[str, str]:
    """The component of diffusers and the dotted name of a module of kohya's.

    Raises:
      PdiffError: it is not made of known words alone.
    """
    for prefix, component in KOHYA.items():
        if name.startswith(f"{prefix}_"):
            inner = name.removeprefix(f"{prefix}_")
            known = dotted(_of_sdxl(inner) if component == "unet" and is_sdxl(metadata) else inner)
            if known is not None:
                return component, known
    reason = (
        "names of SDXL's first release, and its metadata do not say sdxl" if "put_blocks" in name else "other words"
    )
    raise PdiffError(
        f"{shown(name)} is not made of the words of diffusers' UNet or of CLIP's text models alone ({reason}), so its "
        "parts cannot be told for sure"
    )


def dotted(name: str) -> str | None:
    """An underscored name with the dots put back; None where it has words that are not known."""
    parts = []
    while name:
        word = _WORD.match(name)
        if word is None:
            return None
        parts.append(word[0])
        name = name[word.end() + 1 :]
    return ".".join(parts)


def underscored(name: str) -> str:
    """A dotted name as kohya has it.

    Raises:
      PdiffError: the dots could not be put back.
    """
    joined = name.replace(".", "_")
    if dotted(joined) != name:
        raise PdiffError(
            f"{shown(name)} is not made of the words of diffusers' UNet or of CLIP's text models alone, so the tools "
            "that read kohya's names would not find it"
        )
    return joined


def is_sdxl(metadata: Mapping[str, str]) -> bool:
    """Whether metadata of kohya's say that the base is SDXL."""
    architecture = metadata.get("modelspec.architecture", "")
    return metadata.get("ss_base_model_version", "").startswith("sdxl") or "diffusion-xl" in architecture


def _of_sdxl(name: str) -> str:
    """A module of the first release's UNet by the name that diffusers' UNet has, both underscored."""
    if name in SDXL_ALONE:
        return SDXL_ALONE[name]
    block = re.fullmatch(r"(input_blocks|middle_block|output_blocks)_(\d+)_(?:(\d+)_)?(.*)", name)
    if block is None:
        return name
    where, first, second, rest = block[1], int(block[2]), block[3], block[4]
    for old, new in SDXL.items():
        rest = rest.replace(old, new)
    if where == "middle_block":
        kind = ("resnets_0", "attentions_0", "resnets_1")[min(first, 2)]
        return f"mid_block_{kind}_{f'{second}_' if second else ''}{rest}"
    side, count = ("down", first - 1) if where == "input_blocks" else ("up", first)
    number, layer = divmod(count, SDXL_BLOCKS)
    if rest in ("op", "conv"):
        return f"{side}_blocks_{number}_{side}samplers_0_conv"
    return f"{side}_blocks_{number}_{('resnets', 'attentions')[int(second or 0) % 2]}_{layer}_{rest}"


def in_pipeline(adapter: Adapter) -> dict[str, tuple[str, str]]:
    """As `of`, with the component of every module known.

    Raises:
      PdiffError: it cannot be told for sure.
    """
    placed = of(adapter)
    inner = [name for component, name in placed.values() if not component]
    if not inner:
        return placed
    firsts = {name.partition(".")[0] for name in inner}
    for component, beginnings in BEGINNINGS.items():
        if firsts <= set(beginnings):
            return {n: (c or component, name) for n, (c, name) in placed.items()}
    raise PdiffError(
        f"{shown(inner[0])} does not say which component of a diffusion pipeline it is of (known by their names: "
        f"{', '.join(BEGINNINGS)})"
    )


def renamed(adapter: Adapter, module: Module, a: str, b: str, alpha: str | None = None) -> Module:
    """A module of `adapter` with its arrays under other names and as PyTorch orders them, and one for alpha or none."""
    order = -1 if adapter.spelling == "mlx" else 1
    arrays = (Array(name, x.shape[::order], x.dtype) for name, x in ((a, module.a), (b, module.b)))
    return Module(
        *arrays, None if alpha is None else Array(alpha, (), "float32"), module.rank, module.scale, module.embedding
    )


def plain(adapter: Adapter) -> None:
    """Raises PdiffError if an adapter has what pipelines of diffusers do not: embeddings."""
    for name, module in adapter.modules.items():
        if module.embedding:
            raise PdiffError(f"{shown(name)} is an embedding, for which diffusers and kohya have no names")
