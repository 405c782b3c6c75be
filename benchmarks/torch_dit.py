"""The main job's two training steps in PyTorch, as one would write them there: rivals to hold pdiff's own against.

The same models, losses, optimizer and averaging as `pdiff.training.train.train_step` of both stages, with parameters
converted from Flax, so that for the same draws losses and gradients are the same numbers (tests/benchmarks).
Names of modules are Flax's, which makes the conversion one rule. What a shape tells is taken from the shape.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from flax import traverse_util
from jaxtyping import Float, Int, PyTree
from torch import Tensor, nn

from benchmarks.torch_device import DEVICE
from pdiff.errors import PdiffError
from pdiff.generator.generator import MEMBERS, Generator
from pdiff.models.dit import LEAST_VARIANCE
from pdiff.training.stages import MEAN, PRIOR
from pdiff.training.state import learning_rate_schedule
from pdiff.training.train import Stage

SUPPORTED = ("id", "text")
TEXT_HEADS = 4  # as in `pdiff.models.conditions.TextCondition`


@dataclasses.dataclass(frozen=True)
class MeanDraws:
    """All that is random in a step of the mean: what it is told, and rows of the shared images."""

    condition: dict[str, dict]
    rows: Int[Tensor, "batch images"]


@dataclasses.dataclass(frozen=True)
class PriorDraws:
    """All that is random in a step of the prior: its networks, what stands for their tasks, noise levels and noise."""

    row: Int[Tensor, " batch"]
    members: Float[Tensor, "batch members components"]
    sigma: Float[Tensor, " batch"]
    noise: Float[Tensor, "batch tokens dim"]


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, features: int, hidden: int, width: int):
        super().__init__()
        self.up, self.down = nn.Linear(features, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch width"]:
        return self.down(_gelu(self.up(x)))


class Attention(nn.Module):
    """Multi-head self-attention; the columns of `qkv` are head by head."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "batch tokens width"], mask=None) -> Float[Tensor, "batch tokens width"]:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, self.num_heads, 3, width // self.num_heads)
        out = F.scaled_dot_product_attention(*qkv.permute(3, 0, 2, 1, 4).unbind(), attn_mask=mask)
        return self.out(out.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """A transformer block with adaLN-zero."""

    def __init__(self, width: int, hidden: int, num_heads: int):
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention, self.mlp = Attention(width, num_heads), Mlp(width, hidden, width)

    def forward(self, x: Float[Tensor, "batch tokens width"], active: Float[Tensor, "batch width"]):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(active)[:, None].chunk(6, -1)
        x = x + gate1 * self.attention(_modulated(x, shift1, scale1))
        return x + gate2 * self.mlp(_modulated(x, shift2, scale2))


class IdCondition(nn.Module):
    """A learned token for each task."""

    def __init__(self, width: int, num_tasks: int):
        super().__init__()
        self.Embed = nn.ModuleList([nn.Embedding(num_tasks, width)])

    def forward(self, ids: Int[Tensor, " batch"]) -> Float[Tensor, "batch 1 width"]:
        return self.Embed[0](ids)[:, None]


class TextCondition(nn.Module):
    """A small transformer over pieces and number values, pooled to one token."""

    def __init__(self, width: int, text_width: int, depth: int, vocab: int, positions: int, harmonics: int, period):
        super().__init__()
        self.period = period
        self.register_buffer("harmonics", torch.arange(1, harmonics + 1, dtype=torch.float32))
        self.position = nn.Parameter(torch.empty(positions, text_width))
        self.Embed = nn.ModuleList([nn.Embedding(vocab, text_width)])
        self.Attention = nn.ModuleList(Attention(text_width, TEXT_HEADS) for _ in range(depth))
        self.LayerNorm = nn.ModuleList(nn.LayerNorm(text_width, eps=1e-6) for _ in range(2 * depth + 1))
        self.Dense = nn.ModuleList([nn.Linear(text_width, 1)])
        blocks = [Mlp(text_width, 4 * text_width, text_width) for _ in range(depth)]
        values, out = Mlp(2 * harmonics, text_width, text_width), Mlp(text_width, width, width)
        self.Mlp = nn.ModuleList([values, *blocks, out])

    def forward(self, text: Mapping[str, Tensor]) -> Float[Tensor, "batch 1 width"]:
        ids, real = text["ids"], text["ids"] > 0
        angle = 2 * math.pi / self.period * text["values"][..., None] * self.harmonics
        values = self.Mlp[0](torch.cat([angle.sin(), angle.cos()], -1))
        x = self.Embed[0](ids) + self.position[: ids.shape[-1]]
        x = x + torch.where(text["is_number"][..., None], values, 0.0)
        for i, attention in enumerate(self.Attention):
            x = x + attention(self.LayerNorm[2 * i](x), real[:, None, None, :])
            x = x + self.Mlp[i + 1](self.LayerNorm[2 * i + 1](x))
        logits = self.Dense[0](self.LayerNorm[-1](x))[..., 0].masked_fill(~real, -1e9)
        return self.Mlp[-1](torch.bmm(logits.softmax(-1)[:, None], x))


class Conditions(nn.Module):
    """The mean of the tokens of those conditions that are given."""

    def __init__(self, encoders: Mapping[str, nn.Module], width: int):
        super().__init__()
        self.names = tuple(encoders)
        for name, encoder in encoders.items():
            self.add_module(f"encoders_{name}", encoder)
            self.register_parameter(f"null_{name}", nn.Parameter(torch.empty(1, width)))
        self.null = nn.Parameter(torch.empty(width))

    def forward(self, condition: dict[str, dict]) -> Float[Tensor, "batch width"]:
        tokens = torch.cat([getattr(self, f"encoders_{n}")(condition[n]["inputs"]) for n in self.names], 1)
        keep = torch.stack([condition[name]["keep"] for name in self.names], 1)[..., None]
        mean = torch.where(keep, tokens, 0.0).sum(1) / keep.sum(1).clamp(min=1)
        return torch.where(keep.any(1), mean, self.null)


class MeanNetwork(nn.Module):
    """From a condition to normalised weights."""

    def __init__(self, conditions: Conditions, width: int, hidden: int, weights: int):
        super().__init__()
        self.conditions = conditions
        self.inner, self.weights = nn.Linear(width, hidden), nn.Linear(hidden, weights)

    def forward(self, condition: dict[str, dict]) -> Float[Tensor, "batch weights"]:
        return self.weights(_gelu(self.inner(self.conditions(condition))))


class DiT(nn.Module):
    """The diffusion transformer over tokens of coefficients, told of members, with its preconditioning."""

    def __init__(self, width: int, depth: int, hidden: int, heads: int, tokens: int, dim: int, noise: int):
        super().__init__()
        frequencies = torch.exp(torch.linspace(math.log(0.5), math.log(30.0), noise // 2))
        self.register_buffer("frequencies", frequencies)
        self.noise, self.member = Mlp(noise, width, width), Mlp(tokens * dim, width, width)
        self.set = nn.Linear(2 * width, width)
        self.add_module("in", nn.Linear(3 * dim, width))
        self.token_position = nn.Parameter(torch.empty(tokens, width))
        self.block = nn.ModuleList(Block(width, hidden, heads) for _ in range(depth))
        self.final, self.last = nn.Linear(width, 2 * width), nn.Linear(width, dim)

    def forward(
        self,
        z: Float[Tensor, "batch tokens dim"],
        sigma: Float[Tensor, " batch"],
        members: Float[Tensor, "batch members components"],
    ) -> Float[Tensor, "batch tokens dim"]:
        """D(z, sigma)."""
        s = sigma[:, None, None]
        f = self.network(z / torch.sqrt(s**2 + 1), torch.log(sigma) / 4, members)
        return z / (s**2 + 1) + s / torch.sqrt(s**2 + 1) * f

    def network(self, x, c_noise, members):
        described = self.set(_gelu(_moments(self.member(members))))
        angle = c_noise[:, None] * self.frequencies
        active = F.silu(self.noise(torch.cat([angle.sin(), angle.cos()], -1)) + described)
        beside = _moments(members).view(len(x), 2, *x.shape[1:])
        h = getattr(self, "in")(torch.cat([x, beside[:, 0], beside[:, 1]], -1)) + self.token_position
        h = torch.cat([h, described[:, None]], 1)
        for block in self.block:
            h = block(h, active)
        shift, scale = self.final(active)[:, None].chunk(2, -1)
        return self.last(_modulated(h[:, : x.shape[1]], shift, scale))


class PriorLoss(nn.Module):
    """The loss of `pdiff.training.stages.prior_loss` as a function of everything that is random in it."""

    def __init__(self, generator: Generator, constants: Mapping[str, Any], params: PyTree):
        super().__init__()
        self.config, self.model = generator.config, _prior(generator, params)
        self.shape = generator.shape
        for name in ("coefficients", "means"):
            self.register_buffer(name, to_torch(getattr(constants["refined"], name)))
        self.register_buffer("sets", to_torch(constants["sets"]))

    def forward(self, batch: dict, draws: PriorDraws) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss over a batch, and its parts."""
        x0 = self.coefficients[draws.row].view(-1, *self.shape)
        sigma = draws.sigma[:, None, None]
        denoised = self.model(x0 + sigma * draws.noise, draws.sigma, draws.members)
        error = ((denoised - x0) ** 2).mean((1, 2))
        loss = (error * (1 + draws.sigma**-2)).mean()
        return loss, {"loss": loss, "denoising_loss": loss}

    def draw(self, batch: dict, random: torch.Generator) -> PriorDraws:
        """What `pdiff.training.stages.prior_loss` draws, from PyTorch's generator."""
        size, total, count = len(batch["index"]), len(self.means), 2 * MEMBERS
        config, random = self.config, {"generator": random}
        share = torch.rand(size, 1, **random)
        rows = torch.randint(total, (size, 1), **random).expand(size, count)
        if len(self.sets):
            named = self.sets[torch.randint(len(self.sets), (size,), **random)]
            turned = torch.arange(count) + torch.randint(count, (size, 1), **random)
            named = named.gather(1, turned % count)
            rows = torch.where(share < config.condition.drop_all + config.refined.vague, named, rows)
        every = torch.randint(total, (size, count), **random)
        rows = torch.where(share < config.condition.drop_all, every, rows)
        diffusion = config.diffusion
        sigma = torch.exp(diffusion.p_mean + diffusion.p_std * torch.randn(size, **random))
        sigma = sigma.clamp(diffusion.sigma_min, diffusion.sigma_max)
        top = torch.rand(size, **random) < diffusion.at_sigma_max
        sigma = torch.where(top, diffusion.sigma_max, sigma)
        return PriorDraws(rows[:, -1], self.means[rows[:, :MEMBERS]], sigma, torch.randn(size, *self.shape, **random))


class MeanLoss(nn.Module):
    """The loss of `pdiff.training.stages.mean_loss` as a function of a batch and of everything that is random in it."""

    def __init__(self, generator: Generator, constants: Mapping[str, Any], params: PyTree):
        super().__init__()
        self.config, self.model, spec = generator.config, _mean(generator, params), generator.spec
        self.paths = [leaf.path for leaf in spec.leaves]
        self.shapes = [leaf.shape for leaf in spec.leaves]
        self.num_params, self.num_layers = spec.num_params, len(spec.leaves) // 2
        self.text = {name: to_torch(table) for name, table in constants["text"].items()}
        scale = np.asarray(generator.stats.scale)
        arrays = {
            "center": np.asarray(generator.stats.center),
            "scale": scale,
            "base": np.concatenate([np.ravel(_flat(generator.base)[p]) for p in self.paths]),
            **{name: constants[name] for name in ("x", "y", "variables")},
        }
        for name, value in arrays.items():
            self.register_buffer(name, to_torch(value))

    def forward(self, batch: dict[str, Tensor], draws: MeanDraws) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss over a batch of tasks, and its parts."""
        z = self.model(draws.condition).view(-1, *self.center.shape)
        weights = (self.center + self.scale * z).flatten(1)[:, : self.num_params]
        images = torch.bmm(self.x[draws.rows], self.variables[batch["task"]])
        logits = self.logits(weights, images)
        functional = F.cross_entropy(logits.flatten(0, 1), self.y[draws.rows].flatten())
        distance = ((weights - self.base) ** 2).sum(-1).mean()
        config = self.config.mean
        loss = config.functional_weight * (functional + config.base_penalty * distance)
        return loss, {"loss": loss, "functional_loss": functional, "base_distance": distance}

    def draw(self, batch: dict, random: torch.Generator) -> MeanDraws:
        """What `stages.mean_loss` and `conditioning.training_condition` draw, from PyTorch's generator."""
        task, wording, use = batch["task"], batch["wording"], self.config.condition
        size, random = len(task), {"generator": random}
        moved = use.number_noise * torch.randn(size, **random)
        text = {name: table[task, wording] for name, table in self.text.items()}
        text["values"] = torch.where(text["is_number"], text["values"] + moved[:, None], 0.0)
        uniform, inputs = torch.rand(size, len(use.use), **random), {"id": task, "text": text}
        condition = {
            name: {"inputs": inputs[name], "keep": uniform[:, i] >= use[f"drop_{name}"]}
            for i, name in enumerate(use.use)
        }
        rows = torch.randint(len(self.y), (size, self.config.mean.functional_images), **random)
        return MeanDraws(condition, rows)

    def logits(self, weights: Float[Tensor, "batch params"], x: Float[Tensor, "batch images features"]):
        """Of every network on its own images; the leaves of the MLP are (bias, kernel) layer by layer."""
        leaves = weights.split([math.prod(s) for s in self.shapes], 1)
        for i in range(self.num_layers):
            bias, kernel = leaves[2 * i], leaves[2 * i + 1].reshape(-1, *self.shapes[2 * i + 1])
            x = torch.baddbmm(bias[:, None], F.relu(x) if i else x, kernel)
        return x


LOSSES = {MEAN: MeanLoss, PRIOR: PriorLoss}


class Trainer:
    """The step of a stage: draws, loss, gradients, clipping, AdamW, moving average."""

    def __init__(self, generator: Generator, stage: Stage, params: PyTree, compiled: bool = False):
        self.settings = stage.settings
        self.loss = LOSSES[stage.name](generator, stage.constants, params)
        self.parameters = list(self.loss.model.parameters())
        self.ema = [p.detach().clone() for p in self.parameters]
        self.optimizer = _adamw(self.settings.weight_decay, self.parameters)
        self.updates, schedule = 0, learning_rate_schedule(self.settings)
        # The schedule is a table: to call JAX in a step would be no fair rival.
        self.rates = np.asarray(jax.jit(schedule)(np.arange(self.settings.steps + 1))).tolist()
        self.evaluate: Callable = torch.compile(self.loss, dynamic=False) if compiled else self.loss
        self.random = torch.Generator(device=DEVICE).manual_seed(0)

    def step(self, batch: dict, draws: MeanDraws | PriorDraws | None = None) -> dict[str, Tensor]:
        """One update from a batch of `torch_batch`, and its metrics."""
        loss, metrics = self.evaluate(batch, draws or self.loss.draw(batch, self.random))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = self._clip()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[min(self.updates, len(self.rates) - 1)]
        self.optimizer.step()
        rate = min(self.settings.ema_decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, self.parameters, 1 - rate)
        self.updates += 1
        return {k: v.detach() for k, v in metrics.items()} | {"grad_norm": norm}

    def _clip(self) -> Float[Tensor, ""]:
        """Scales gradients to a global norm of at most `grad_clip`, as `optax.clip_by_global_norm`; returns the norm.

        `torch.nn.utils.clip_grad_norm_` adds 1e-6 to the norm.
        """
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, torch.clamp(self.settings.grad_clip / norm, max=1.0))
        return norm


def _mean(generator: Generator, params: PyTree) -> MeanNetwork:
    """The mean with parameters `params` of its Flax model. Sizes are those of the arrays.

    Raises:
      PdiffError: it is not a model that is written here, or an array is missing, left over or of another shape.
    """
    config = generator.config
    _require((
        ("condition.use", config.condition.use, set(config.condition.use) <= set(SUPPORTED), "id and text"),
        ("tasks.family", config.tasks.family, config.tasks.family == "rotation", "rotation"),
        ("target.name", config.target.name, config.target.name == "mlp", "mlp"),
        ("target.generate", config.target.generate, all(generator.spec.generated), "all leaves"),
        ("mean.zoo_weight", config.mean.zoo_weight, config.mean.zoo_weight == 0, "0"),
    ))  # fmt: skip
    shape = {path: array.shape for path, array in _flat(params).items()}
    width, hidden = shape["inner/kernel"]
    text = "conditions/encoders_text"
    encoders = {
        "id": lambda: IdCondition(width, shape["conditions/encoders_id/Embed_0/embedding"][0]),
        "text": lambda: TextCondition(
            width, shape[f"{text}/position"][1], _count(shape, text, "Attention"),
            shape[f"{text}/Embed_0/embedding"][0], shape[f"{text}/position"][0],
            shape[f"{text}/Mlp_0/up/kernel"][0] // 2, config.condition.number_period,
        ),
    }  # fmt: skip
    conditions = Conditions({name: encoders[name]() for name in config.condition.use}, width)
    return _loaded(MeanNetwork(conditions, width, hidden, shape["weights/kernel"][1]), params)


def _prior(generator: Generator, params: PyTree) -> DiT:
    """The same of the prior."""
    config = generator.config
    _require((
        ("diffusion.path", config.diffusion.path, config.diffusion.path == "ve", "ve"),
        ("model.dtype", config.model.dtype, config.model.dtype == "float32", "float32"),
    ))  # fmt: skip
    shape = {path: array.shape for path, array in _flat(params).items()}
    width, hidden = shape["block_0/mlp/up/kernel"]
    depth, heads = _count(shape, "", "block"), config.model.num_heads
    return _loaded(DiT(width, depth, hidden, heads, *generator.shape, shape["noise/up/kernel"][0]), params)


def _loaded(model: nn.Module, params: PyTree) -> nn.Module:
    try:
        model.load_state_dict(flax_arrays(params) | dict(model.named_buffers()), strict=True)
    except RuntimeError as error:
        raise PdiffError(f"params: do not fit the model in PyTorch: {error}") from error
    return model


def flax_arrays(tree: PyTree) -> dict[str, Tensor]:
    """A tree of the Flax model's parameters, or of gradients, by the names that they have here.

    `block_0` becomes an item of a list, and kernels are transposed.
    """
    names = {"kernel": "weight", "embedding": "weight", "scale": "weight"}
    found = {}
    for path, array in _flat(tree).items():
        *modules, leaf = path.split("/")
        modules = [re.sub(r"_(\d+)$", r".\1", m) for m in modules]
        value = np.asarray(array, np.float32)
        found[".".join([*modules, names.get(leaf, leaf)])] = to_torch(value.T if leaf == "kernel" else value)
    return found


def torch_batch(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """A batch of either stage."""
    return {name: to_torch(array) for name, array in batch.items()}


def to_torch(array: Any) -> Tensor:
    """A copy, with int32 as int64, which indexing here wants."""
    array = np.array(array)
    return torch.from_numpy(array.astype(np.int64) if array.dtype == np.int32 else array).to(DEVICE)


def _adamw(weight_decay: float, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """As `training.state.make_optimizer`: decay on matrices alone. Its learning rate is set by the step."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), eps=1e-8, fused=True)


def _require(wanted: tuple) -> None:
    """Raises PdiffError for a generator whose step is not the one that is written here."""
    for field, value, fits, allowed in wanted:
        if not fits:
            raise PdiffError(f"{field}: got {value!r}; allowed for the model in PyTorch: {allowed}")


def _flat(tree: PyTree) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree, sep="/")


def _count(paths: Mapping[str, Any], under: str, name: str) -> int:
    """How many modules `name`_0, `name`_1, … there are."""
    return len({m[1] for p in paths if (m := re.match(rf"{under and under + '/'}{name}_(\d+)/", p))})


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _moments(x: Float[Tensor, "batch members features"]) -> Float[Tensor, "batch twice"]:
    """Mean and standard deviation of each feature over the members."""
    return torch.cat([x.mean(1), torch.sqrt(x.var(1, correction=0) + LEAST_VARIANCE)], -1)
