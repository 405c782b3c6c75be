"""p-diff (Wang et al. 2024): unconditional diffusion of auto-encoded weights, a thousand ancestral steps.

It draws networks of the zoo's distribution, whatever the condition.
"""

import dataclasses

from pdiff.diffusion import samplers
from pdiff.rivals import ddpm
from pdiff.rivals.latent_unet import LatentUNet


@dataclasses.dataclass(frozen=True)
class PDiff(LatentUNet):
    """The same auto-encoder and UNet as `LatentUNet`'s, without a condition."""

    name = "p_diff"
    conditional = False
    num_steps = ddpm.STEPS
    sampler = staticmethod(samplers.ancestral)
