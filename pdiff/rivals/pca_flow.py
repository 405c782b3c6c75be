"""Flow matching in the space of the zoo's principal components, after DeepWeightFlow (2026), with pdiff's condition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree
from sklearn.decomposition import PCA

from pdiff.generator.generator import Generator
from pdiff.models.layers import Dense, Mlp, noise_features
from pdiff.rivals.learned import Conditioned, Learned, TrainingZoo, conditioned, init, normal

EXPLAINED, MOST = 0.99, 256  # share of the variance that the components explain, and how many there may be
STEPS = 100  # Euler steps from noise to data


class Velocity(nn.Module):
    """A residual MLP that predicts data - noise from their mixture."""

    width: int
    depth: int = 3

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch k"], c_noise: Float[Array, " batch"], vector: Float[Array, "batch width"]
    ) -> Float[Array, "batch k"]:
        v = Mlp(self.width, self.width)(noise_features(c_noise)) + Dense(self.width)(nn.LayerNorm()(vector))
        h = Dense(self.width)(x)
        for _ in range(self.depth):
            h += Mlp(self.width, self.width)(nn.LayerNorm()(h + v))
        return Dense(x.shape[-1], kernel_init=nn.initializers.zeros)(nn.silu(h))


@dataclasses.dataclass(frozen=True)
class PCAFlow(Learned):
    """See above. `params` are the network's, and `mean`, `basis` (orthonormal rows) and `scale` of the components."""

    name = "pca_flow"

    @classmethod
    def fit(cls, zoo: TrainingZoo) -> "PCAFlow":
        generator, flat = zoo.generator, zoo.x0.reshape(len(zoo.x0), -1)
        mean, basis = components(flat)
        scale = np.float32(((flat - mean) @ basis.T).std())
        model = _model(generator)

        def loss(params, x1, condition_at, keys):
            at, drawn = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
            t, noise = jax.vmap(jax.random.uniform)(at), normal(drawn, x1.shape[1:])
            x = (1 - t[:, None]) * noise + t[:, None] * x1
            predicted = model.apply({"params": params}, x, t, condition_at((1 - t) / jnp.maximum(t, 1e-3)))
            return ((predicted - (x1 - noise)) ** 2).mean()

        network = zoo.fit(cls.name, loss, init(generator, model, (len(basis),)), (flat - mean) @ basis.T / scale)
        return cls(generator, zoo.mesh, {"network": network, "mean": mean, "basis": basis, "scale": scale})

    def draw(self, params: PyTree, condition: dict, keys: Key[Array, " batch"]) -> Float[Array, "batch tokens dim"]:
        model = _model(self.generator)
        context = model.apply({"params": params["network"]}, condition, method="encode")

        def step(x, t):
            at = jnp.full(len(x), t)
            return x + model.apply({"params": params["network"]}, x, at, context, method="denoise") / STEPS, None

        x, _ = jax.lax.scan(step, normal(keys, (len(params["basis"]),)), jnp.arange(STEPS) / STEPS)
        flat = params["mean"] + params["scale"] * x @ params["basis"]
        return flat.reshape(-1, self.generator.spec.num_tokens, self.generator.spec.token_dim)


def components(
    flat: Float[np.ndarray, "nets params"],
) -> tuple[Float[np.ndarray, " params"], Float[np.ndarray, "k params"]]:
    """The mean, and the fewest principal directions that explain EXPLAINED of the variance, at most MOST."""
    fitted = PCA(min(MOST, *flat.shape), svd_solver="randomized", random_state=0).fit(flat)
    count = int(np.searchsorted(np.cumsum(fitted.explained_variance_ratio_), EXPLAINED)) + 1
    return fitted.mean_.astype(np.float32), fitted.components_[:count].astype(np.float32)


def _model(generator: Generator) -> Conditioned:
    return conditioned(generator, Velocity(4 * generator.config.model.width))
