"""A hypernetwork: the same encoders, transformer, losses, data and steps, and no diffusion (Ha et al. 2017).

It is the generator itself with its noisy input taken away, always at sigma_max, so that it can only learn
one network for each condition. What a diffusion model is worth is what it does better than this.
"""

import dataclasses

from pdiff.generator import Generator


def rival(generator: Generator) -> Generator:
    """The deterministic generator to train beside `generator`; the posterior mean is its only sampler."""
    config = generator.config.copy_and_resolve_references()
    with config.unlocked():
        config.diffusion.at_sigma_max = 1.0
        config.sample.samplers = ("posterior_mean",)
    return dataclasses.replace(generator, config=config, deterministic=True)
