"""The source paper's method (arXiv 2506.17807): conditional diffusion in the latent space of a weight auto-encoder.

A 1-D UNet predicts the noise, the condition enters every block, DDIM samples. A third of the training time is the
auto-encoder's, the rest the UNet's.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from pdiff.diffusion import samplers
from pdiff.generator.generator import Generator, null_condition
from pdiff.models.layers import Conv1D, Dense, Mlp, noise_features, upsampled
from pdiff.rivals import ddpm
from pdiff.rivals.autoencoder import Autoencoder
from pdiff.rivals.learned import Conditioned, Learned, TrainingZoo, conditioned, init, normal


class ResBlock(nn.Module):
    """Two convolutions, shifted and scaled by `vector` between them (as Dhariwal & Nichol 2021)."""

    channels: int

    @nn.compact
    def __call__(self, h: Float[Array, "batch length c"], vector: Float[Array, "batch width"]):
        x = Conv1D(self.channels, 3)(nn.silu(nn.GroupNorm(8)(h)))
        shift, scale = jnp.split(Dense(2 * self.channels)(nn.silu(vector))[:, None], 2, -1)
        x = nn.silu(nn.GroupNorm(8)(x) * (1 + scale) + shift)
        x = Conv1D(self.channels, 3, kernel_init=nn.initializers.zeros)(x)
        return x + (h if h.shape[-1] == self.channels else Dense(self.channels)(h))


class UNet1D(nn.Module):
    """A 1-D UNet of two levels over a latent vector: `width` channels at half its length, half of them at full."""

    width: int

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch latent"], c_noise: Float[Array, " batch"], vector: Float[Array, "batch width"]
    ) -> Float[Array, "batch latent"]:
        v = Mlp(self.width, self.width)(noise_features(c_noise)) + Dense(self.width)(nn.LayerNorm()(vector))
        wide, narrow = self.width // 2, self.width
        h = Conv1D(wide, 3)(z[..., None])
        h += self.param("position", nn.initializers.normal(0.02), h.shape[1:])  # a latent's places are not alike
        skip = h = ResBlock(wide)(h, v)
        h = Conv1D(narrow, 4, 2)(h)
        h = ResBlock(narrow)(ResBlock(narrow)(h, v), v)
        h = upsampled(Conv1D(2 * wide, 3)(h), 2)
        h = ResBlock(wide)(jnp.concatenate([h, skip], -1), v)
        h = nn.silu(nn.GroupNorm(8)(h))
        return Conv1D(1, 3, kernel_init=nn.initializers.zeros)(h)[..., 0]


@dataclasses.dataclass(frozen=True)
class LatentUNet(Learned):
    """See above. `params` are the auto-encoder's with the moments of its latents, and the UNet's."""

    name = "latent_unet"
    conditional = True
    num_steps = 100
    sampler = staticmethod(samplers.ddim)

    @classmethod
    def fit(cls, zoo: TrainingZoo) -> "LatentUNet":
        ae, latents = Autoencoder(zoo.generator).fit(zoo, f"{cls.name}/autoencoder", 1 / 3)
        model = _model(zoo.generator)

        def loss(params, z0, condition_at, keys):
            at, drawn = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
            s = ddpm.training_ratios(at)
            z = z0 + s[:, None] * normal(drawn, z0.shape[1:])
            context = model.apply({"params": params}, cls.unet_condition(condition_at(s)), method="encode")
            return ddpm.squared_error(_denoiser(model, params, context)(z, s), z0, s)

        unet = zoo.fit(f"{cls.name}/unet", loss, init(zoo.generator, model, latents.shape[1:]), latents, 2 / 3)
        return cls(zoo.generator, zoo.mesh, {"autoencoder": ae, "unet": unet})

    @classmethod
    def unet_condition(cls, condition: dict) -> dict:
        """The condition that the UNet has."""
        return condition if cls.conditional else null_condition(condition)

    def draw(self, params: PyTree, condition: dict, keys: Key[Array, " batch"]) -> Float[Array, "batch tokens dim"]:
        model, unet = _model(self.generator), params["unet"]
        context = model.apply({"params": unet}, self.unet_condition(condition), method="encode")
        ae = Autoencoder(self.generator)
        noise, fresh = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        start, levels = normal(noise, (ae.latent,)), ddpm.levels(self.num_steps)
        z = self.sampler(_denoiser(model, unet, context), None, start, levels, fresh)
        return ae.decode_standardised(params["autoencoder"], z)


def _model(generator: Generator) -> Conditioned:
    return conditioned(generator, UNet1D(generator.config.model.width))


def _denoiser(model: Conditioned, params: PyTree, context):
    return ddpm.predicts_noise(lambda x, c: model.apply({"params": params}, x, c, context, method="denoise"))
