"""What the benchmark of sampling counts, and that its rival is of the size and does the steps that it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sampling
from pdiff.diffusion.guidance import guided


def test_calls_of_samplers(tiny):
    n = tiny.config.sample.num_steps
    counted = {name: sampling.calls(tiny, name) for name in sampling.COMPARED}
    assert counted == {"posterior_mean": 1, "ddim": n, "dpmpp_2m": n, "heun": 2 * n - 1}


def test_guidance_is_one_call_of_a_doubled_batch():
    sizes = []

    def denoise(z, sigma, condition):
        sizes.append((len(z), len(sigma), len(condition)))
        return condition * z

    z, told, null = jnp.ones((3, 2)), jnp.full((3, 1), 5.0), jnp.full((3, 1), 1.0)
    out = guided(denoise, told, null, sampling.GUIDANCE)(z, jnp.ones(3))
    assert sizes == [(6, 6, 6)]
    np.testing.assert_allclose(out, 1 + sampling.GUIDANCE * (5 - 1))


def test_networks_are_drawn_and_guidance_changes_them(tiny, mesh):
    from benchmarks.train_step import random_parameters
    from pdiff.generator.sample import Samplers

    params = random_parameters(tiny.init)
    count = min(sampling.NETWORKS, len(tiny.family.tasks))
    plain, scaled = (
        sampling._drawn(g, Samplers(g, mesh), params, "posterior_mean")()
        for g in (tiny, sampling._guided(tiny, sampling.GUIDANCE))
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(scaled), strict=True):
        assert len(a) == count and np.isfinite(a).all() and not np.allclose(a, b)


def test_the_rival_is_of_the_published_size_and_its_steps_take_noise_away():
    torch = pytest.importorskip("torch")
    from benchmarks import torch_pdiff

    torch.manual_seed(0)
    model = torch_pdiff.UNet1D()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(2.46e6, rel=0.03)
    assert model(torch.randn(2, torch_pdiff.LATENT), torch.zeros(2)).shape == (2, torch_pdiff.LATENT)

    class Exact(torch.nn.Module):
        """The noise in latents that are all ones: what a perfect network would say."""

        def forward(self, x, t):
            kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, torch_pdiff.STEPS), 0)[t[0].long()]
            return (x - kept.sqrt()) / (1 - kept).sqrt()

    made = torch_pdiff.denoised(Exact(), torch.randn(50, torch_pdiff.LATENT), torch_pdiff.STEPS)
    assert made.mean().item() == pytest.approx(1, abs=0.01) and made.std() < 0.05
