"""all-MiniLM-L6-v2 with a head: its top two layers, on texts whose lower layers were computed once (`pdiff.minilm`).

An input is the tokens of a text after the layers below, one after the other, and zeros after its end. The network is
`transformers`' BertForSequenceClassification: two layers, the pooler of the first token and a linear head. Of the last
layer only the first token is computed, because nothing else is read.

What is published stays as it is. What is generated are low-rank adapters of the layers' six matrices, and the head:
`generate="lora/.*|params/classifier/.*"`. `peft` says what PEFT calls these leaves.
"""

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from pdiff import minilm
from pdiff.errors import PdiffError
from pdiff.minilm import MATRICES, NORMS, POOLER, TOP, Sizes
from pdiff.targets.base import Peft

FROZEN = "params/(?!classifier/).*"
HEAD = "params/classifier/.*"
PEFT_LAYER, PEFT_HEAD = "base_model.model.bert.encoder.layer.{}.{}", "base_model.model.classifier"
HEAD_PARTS = {"kernel": "weight", "bias": "bias"}
NEEDED_BY = "target.name: 'minilm'"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "*batch inputs"], w: Float[Array, "inputs outputs"], dtype: Any = jnp.float32
) -> Float[Array, "*batch outputs"]:
    """x W, of both rounded to `dtype`, summed in float32; its gradients are products of rows as they lie.

    JAX's own gradient of W has the large matrix transposed, for which XLA's CPU compiler computes it anew, element by
    element: of adapters a fifth of a step.
    """
    return jnp.matmul(x.astype(dtype), w.astype(dtype), preferred_element_type=jnp.float32)


def _product_forward(x: Array, w: Array, dtype: Any) -> tuple[Array, tuple[Array, Array]]:
    return product(x, w, dtype), (x, w)


def _product_backward(dtype: Any, factors: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    rows, w, by_row = (v.reshape(-1, v.shape[-1]).astype(dtype) for v in (*factors, g))
    of_x, of_w = (
        jnp.einsum(over, a, b, preferred_element_type=jnp.float32)
        for over, a, b in (("no,io->ni", by_row, w), ("ni,no->io", rows, by_row))
    )
    return of_x.reshape(factors[0].shape), of_w


product.defvjp(_product_forward, _product_backward)


class Adapted(nn.Module):
    """`nn.Dense` and, where the tree has an adapter of it, x A B times `scale`, never a whole matrix."""

    features: int
    scale: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        kernel = self.param("kernel", nn.initializers.zeros, (x.shape[-1], self.features))
        y = product(x, kernel, self.dtype) + self.param("bias", nn.initializers.zeros, (self.features,))
        if not self.has_variable("lora", "kernel"):
            return y
        adapter = self.get_variable("lora", "kernel")
        return y + self.scale * product(product(x, adapter["a"], self.dtype), adapter["b"], self.dtype)


class Norm(nn.Module):
    """A LayerNorm's weight and bias, after BERT's own standardisation."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return minilm.standardized(x, self.epsilon) * scale + self.param("bias", nn.initializers.zeros, scale.shape)


class Classifier(nn.Module):
    """Modules are named layer_I_NAME, by the published names with "_" for ".", and pooler and classifier."""

    sizes: Sizes
    wider: int
    num_classes: int
    scale: float
    dtype: Any = jnp.float32  # that matrices are rounded to

    @nn.compact
    def __call__(self, x: Float[Array, "n features"]) -> Float[Array, "n classes"]:
        x = x.reshape(len(x), -1, self.sizes.width).astype(jnp.float32)
        real = (x != 0).any(-1)
        for i in range(self.sizes.depth - TOP, self.sizes.depth):

            def dense(name, x, i=i):
                features = self.wider if name == minilm.WIDER else self.sizes.width
                return Adapted(features, self.scale, self.dtype, name=_module(i, name))(x)

            def norm(name, x, i=i):
                return Norm(self.sizes.epsilon, name=_module(i, name))(x)

            x = minilm.layer(x, real, self.sizes.heads, dense, norm, first=i == self.sizes.depth - 1)
        pooled = nn.tanh(nn.Dense(self.sizes.width, name="pooler")(x[:, 0]))
        return nn.Dense(self.num_classes, name="classifier")(pooled)


def _module(layer: int, name: str) -> str:
    return f"layer_{layer}_{name.replace('.', '_')}"


def make_module(config: ConfigDict, image_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The module for the `target` part of a run's config; it reads none of `target.widths`.

    Raises:
      PdiffError: MiniLM is not installed, or the family's inputs are no tokens of it.
    """
    of = minilm.sizes(folder := minilm.find(NEEDED_BY))
    if len(image_shape) != 1 or image_shape[0] % of.width:
        raise PdiffError(
            f"{NEEDED_BY} reads texts as tokens {of.width} wide; the family has inputs of shape {image_shape}; "
            "allowed: tasks.family=text_rules"
        )
    layers = minilm.load_weights(folder / "model.safetensors")["layers"]
    scale = config.lora_alpha / config.lora_rank if config.lora_rank else 0.0
    return Classifier(of, layers[f"{minilm.WIDER}.bias"].shape[1], num_classes, scale)


def published() -> dict[str, Float[Any, "..."]]:
    """The leaves that are not trained, by path: what `FROZEN` matches."""
    folder = minilm.find(NEEDED_BY)
    of, weights = minilm.sizes(folder), minilm.load_weights(folder / "model.safetensors")
    layers, leaves = weights["layers"], {}
    for i in range(of.depth - TOP, of.depth):
        for name in MATRICES:
            leaves[f"params/{_module(i, name)}/kernel"] = layers[f"{name}.weight"][i].T
            leaves[f"params/{_module(i, name)}/bias"] = layers[f"{name}.bias"][i]
        for name in NORMS:
            leaves[f"params/{_module(i, name)}/scale"] = layers[f"{name}.weight"][i]
            leaves[f"params/{_module(i, name)}/bias"] = layers[f"{name}.bias"][i]
    leaves["params/pooler/kernel"] = weights["pooler"][f"{POOLER}.weight"].T
    return leaves | {"params/pooler/bias": weights["pooler"][f"{POOLER}.bias"]}


def peft(config: ConfigDict) -> Peft | None:
    """What PEFT calls the generated leaves, and the config of such an adapter; None without adapters."""
    if not config.lora_rank:
        return None
    depth = minilm.sizes(minilm.find(NEEDED_BY)).depth
    every = itertools.product(range(depth - TOP, depth), MATRICES)
    adapted = [(i, name) for i, name in every if re.fullmatch(config.lora_modules, _module(i, name))]
    names = {f"params/classifier/{ours}": f"{PEFT_HEAD}.{theirs}" for ours, theirs in HEAD_PARTS.items()}
    for i, name in adapted:
        for ours, theirs in (("a", "lora_A"), ("b", "lora_B")):
            names[f"lora/{_module(i, name)}/kernel/{ours}"] = f"{PEFT_LAYER.format(i, name)}.{theirs}.weight"
    return Peft(
        names,
        {
            "base_model_name_or_path": minilm.MODEL,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": 0.0,
            "modules_to_save": ["classifier"],
            "peft_type": "LORA",
            "r": config.lora_rank,
            "target_modules": [f"bert.encoder.layer.{i}.{name}" for i, name in adapted],
            "task_type": "SEQ_CLS",
            "use_rslora": False,
        },
    )
