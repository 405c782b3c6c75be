"""A generator after G.pt (Peebles et al. 2022): a transformer over weight tokens that predicts x0, as a DDPM.

It is pdiff's transformer without its preconditioning, its direct path, its functional loss and its noise distribution.
It is told pdiff's condition, where G.pt is told a starting network and the loss that is wanted.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from pdiff.baselines import ddpm
from pdiff.baselines.learned import Learned, TrainingZoo, init, normal
from pdiff.diffusion import samplers
from pdiff.diffusion.denoiser import Denoiser
from pdiff.generator import Generator
from pdiff.models.dit import ConditionalDiT, make_model
from pdiff.weights import stats


@dataclasses.dataclass(frozen=True)
class GPt(Learned):
    """See above."""

    name = "g_pt"

    @classmethod
    def fit(cls, zoo: TrainingZoo) -> "GPt":
        generator = zoo.generator

        def loss(params, x0, told, keys):
            at, drawn = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
            s = ddpm.training_ratios(at)
            z = x0 + s[:, None, None] * normal(drawn, x0.shape[1:])
            varying = stats.varying(generator.stats)
            error = ddpm.squared_error(_denoiser(generator, params, told(s))(jnp.where(varying, z, 0), s), x0)
            return error * varying.size / varying.sum()

        shape = (generator.spec.num_tokens, generator.spec.token_dim)
        return cls(generator, zoo.mesh, zoo.fit(cls.name, loss, init(generator, _model(generator), shape), zoo.x0))

    def draw(self, params: PyTree, condition: dict, keys: PRNGKeyArray) -> Float[Array, "batch tokens dim"]:
        noise, fresh = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        shape = (self.generator.spec.num_tokens, self.generator.spec.token_dim)
        start = jnp.where(stats.varying(self.generator.stats), normal(noise, shape), 0)
        denoise = _denoiser(self.generator, params, condition)
        return samplers.ancestral(denoise, None, start, ddpm.levels(), fresh)


def _model(generator: Generator) -> ConditionalDiT:
    config = generator.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.mean_width = 0
    return make_model(config, generator.spec, generator.family, generator.tokenizer.vocab_size)


def _denoiser(generator: Generator, params: PyTree, condition: dict) -> Denoiser:
    """D, zero where weights do not vary."""
    model = _model(generator)
    context = model.apply({"params": params}, condition, method="encode")
    denoise = ddpm.predicts_data(lambda x, c: model.apply({"params": params}, x, c, context, method="denoise"))
    varying = stats.varying(generator.stats)
    return lambda z, s: jnp.where(varying, denoise(jnp.where(varying, z, 0), s), 0)
