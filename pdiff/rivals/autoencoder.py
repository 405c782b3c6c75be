"""A variational auto-encoder of weight vectors by 1-D convolutions, with noise on its input and on its latent.

As p-diff (Wang et al. 2024) and the conditional model of arXiv 2506.17807 have it: the noise makes latents that are a
little off decode to networks that still work. A latent has `model.width` dimensions.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree

from pdiff import rng
from pdiff.generator.generator import Generator
from pdiff.models.layers import Conv1D, Dense, upsampled
from pdiff.rivals.learned import TrainingZoo, normal
from pdiff.weights import stats

CHANNELS = (32, 64, 128)  # of the encoder's stages, each of which shortens the vector by STRIDE
STRIDE, KERNEL, GROUPS = 4, 7, 8
INPUT_NOISE, LATENT_NOISE = 0.05, 0.1  # standard deviations; normalised weights and latents have one of about 1
KL_WEIGHT = 1e-4


class Encoder(nn.Module):
    """Weight vectors to the mean and log-variance of their latents."""

    latent: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch length"]) -> tuple[Float[Array, "batch latent"], ...]:
        h = x[..., None]
        for channels in CHANNELS:
            h = nn.gelu(nn.GroupNorm(GROUPS)(Conv1D(channels, KERNEL, STRIDE)(h)))
        return tuple(jnp.split(Dense(2 * self.latent)(h.reshape(len(h), -1)), 2, -1))


class Decoder(nn.Module):
    """Latents to weight vectors."""

    length: int

    @nn.compact
    def __call__(self, z: Float[Array, "batch latent"]) -> Float[Array, "batch length"]:
        short = self.length // STRIDE ** len(CHANNELS)
        h = Dense(short * CHANNELS[-1])(z).reshape(len(z), short, CHANNELS[-1])
        for channels in (*CHANNELS[-2::-1], 1):
            h = nn.gelu(nn.GroupNorm(GROUPS)(h))
            h = upsampled(Conv1D(STRIDE * channels, 3)(h), STRIDE)
        return h[..., 0]


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """The pair as pure functions, for the tokens of a generator. Parameters are {'encoder', 'decoder'}."""

    generator: Generator

    @property
    def latent(self) -> int:
        """Dimensions of the latent."""
        return self.generator.config.model.width

    @property
    def length(self) -> int:
        """Of a weight vector, filled up to what the stages divide."""
        factor = STRIDE ** len(CHANNELS)
        return math.ceil(self.generator.spec.num_tokens * self.generator.spec.token_dim / factor) * factor

    def init(self) -> PyTree:
        key = rng.stream(self.generator.config.seed, "baselines/autoencoder")
        encoder = jax.jit(Encoder(self.latent).init)(key, jnp.zeros((1, self.length)))["params"]
        decoder = jax.jit(Decoder(self.length).init)(key, jnp.zeros((1, self.latent)))["params"]
        return {"encoder": encoder, "decoder": decoder}

    def encode(self, params: PyTree, x0: Float[Array, "batch tokens dim"]) -> tuple[Float[Array, "batch latent"], ...]:
        """Mean and log-variance of the latents."""
        flat = x0.reshape(len(x0), -1)
        padded = jnp.pad(flat, ((0, 0), (0, self.length - flat.shape[1])))
        return Encoder(self.latent).apply({"params": params["encoder"]}, padded)

    def decode(self, params: PyTree, latent: Float[Array, "batch latent"]) -> Float[Array, "batch tokens dim"]:
        shape = (self.generator.spec.num_tokens, self.generator.spec.token_dim)
        flat = Decoder(self.length).apply({"params": params["decoder"]}, latent)[:, : math.prod(shape)]
        return jnp.where(stats.varying(self.generator.stats), flat.reshape(-1, *shape), 0)

    def loss(
        self, params: PyTree, x0: Float[Array, "batch tokens dim"], condition_at, keys: Key[Array, " batch"]
    ) -> Float[Array, ""]:
        """Mean squared error of what varies, and KL_WEIGHT x the divergence from N(0, 1) of each latent dimension."""
        a, b, c = jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, 3))(keys), 1, 0)
        varying = stats.varying(self.generator.stats)
        mean, log_variance = self.encode(params, jnp.where(varying, x0 + INPUT_NOISE * normal(a, x0.shape[1:]), 0))
        latent = mean + jnp.exp(log_variance / 2) * normal(b, mean.shape[1:])
        restored = self.decode(params, latent + LATENT_NOISE * normal(c, mean.shape[1:]))
        error = ((restored - x0) ** 2).sum((1, 2)) / varying.sum(dtype=x0.dtype)
        divergence = (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum(-1) / 2
        return (error + KL_WEIGHT * divergence).mean()

    def fit(self, zoo: TrainingZoo, name: str, share: float) -> tuple[PyTree, Float[np.ndarray, "nets latent"]]:
        """Trained parameters, standardised latents of the zoo's networks (their moments are among the parameters)."""
        params = zoo.fit(name, self.loss, self.init(), zoo.x0, share)
        latent = np.asarray(jax.jit(lambda p, x: self.encode(p, x)[0])(params, zoo.x0))
        center, scale = latent.mean(0), np.maximum(latent.std(0), 1e-3)
        return params | {"center": center, "scale": scale}, (latent - center) / scale

    def decode_standardised(self, params: PyTree, z: Float[Array, "batch latent"]) -> Float[Array, "batch tokens dim"]:
        """Networks of standardised latents."""
        return self.decode(params, params["center"] + params["scale"] * z)
