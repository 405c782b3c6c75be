"""p-diff (Wang et al. 2024): unconditional diffusion of auto-encoded weights, a thousand ancestral steps.

What it draws is some network of the zoo's distribution, whatever it was asked for.
"""

import dataclasses

from pdiff.diffusion import samplers
from pdiff.rivals import ddpm
from pdiff.rivals.latent_unet import LatentUNet


@dataclasses.dataclass(frozen=True)
class PDiff(LatentUNet):
    """The same auto-encoder and UNet as `LatentUNet`'s, never told a condition."""

    name = "p_diff"
    conditional = False
    num_steps = ddpm.STEPS
    sampler = staticmethod(samplers.ancestral)
