"""A generator after G.pt (Peebles et al. 2022): a transformer over weight tokens that predicts x0, as a DDPM.

It consists of pdiff's blocks, without its mean, subspace, preconditioning and noise distribution. It is conditioned as
pdiff is, where G.pt is conditioned on a starting network and the desired loss.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from pdiff.diffusion import samplers
from pdiff.diffusion.denoiser import Denoiser
from pdiff.generator.generator import Generator
from pdiff.models.conditions import Context, make_conditions
from pdiff.models.dit import Block
from pdiff.models.layers import Dense, Mlp, noise_features
from pdiff.rivals import ddpm
from pdiff.rivals.learned import Learned, TrainingZoo, init, normal
from pdiff.weights import stats


@dataclasses.dataclass(frozen=True)
class GPt(Learned):
    """See above."""

    name = "g_pt"

    @classmethod
    def fit(cls, zoo: TrainingZoo) -> "GPt":
        generator = zoo.generator

        def loss(params, x0, condition_at, keys):
            at, drawn = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
            s = ddpm.training_ratios(at)
            z = x0 + s[:, None, None] * normal(drawn, x0.shape[1:])
            varying = stats.varying(generator.stats)
            error = ddpm.squared_error(_denoiser(generator, params, condition_at(s))(jnp.where(varying, z, 0), s), x0)
            return error * varying.size / varying.sum(dtype=x0.dtype)

        shape = (generator.spec.num_tokens, generator.spec.token_dim)
        return cls(generator, zoo.mesh, zoo.fit(cls.name, loss, init(generator, _model(generator), shape), zoo.x0))

    def draw(self, params: PyTree, condition: dict, keys: Key[Array, " batch"]) -> Float[Array, "batch tokens dim"]:
        noise, fresh = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        shape = (self.generator.spec.num_tokens, self.generator.spec.token_dim)
        start = jnp.where(stats.varying(self.generator.stats), normal(noise, shape), 0)
        denoise = _denoiser(self.generator, params, condition)
        return samplers.ancestral(denoise, None, start, ddpm.levels(), fresh)


class WeightTransformer(nn.Module):
    """Weight tokens and condition tokens in, weight tokens out; zero at initialization."""

    conditions: nn.Module
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"], c_noise: Float[Array, " batch"], condition: dict):
        tokens, dim = x.shape[1:]
        context: Context = self.conditions(condition)
        vector = Mlp(self.width, self.width, name="noise")(noise_features(c_noise))
        vector += Dense(self.width, name="pooled")(context.pooled)
        h = Dense(self.width, name="in")(x)
        h += self.param("position", nn.initializers.normal(0.02), (tokens, self.width))
        h = jnp.concatenate([h, context.tokens], 1)
        for i in range(self.depth):
            h = Block(self.num_heads, self.mlp_ratio, jnp.float32, name=f"block_{i}")(h, vector)
        h = nn.LayerNorm(name="norm")(h[:, :tokens])
        return Dense(dim, kernel_init=nn.initializers.zeros, name="out")(h)


def _model(generator: Generator) -> WeightTransformer:
    config = generator.config
    conditions = make_conditions(config, generator.family, generator.tokenizer.vocab_size)
    model = config.model
    return WeightTransformer(conditions, model.width, model.depth, model.num_heads, model.mlp_ratio)


def _denoiser(generator: Generator, params: PyTree, condition: dict) -> Denoiser:
    """D, zero where weights do not vary."""
    model = _model(generator)
    denoise = ddpm.predicts_data(lambda x, c: model.apply({"params": params}, x, c, condition))
    varying = stats.varying(generator.stats)
    return lambda z, s: jnp.where(varying, denoise(jnp.where(varying, z, 0), s), 0)
