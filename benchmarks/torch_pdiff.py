"""Sampling as p-diff does it (Wang et al. 2024), in PyTorch: a 1-D UNet over latent vectors, a thousand DDPM steps.

Written for its time alone: a network of about the size that p-diff's own has for 2,410 weights (2.46 M parameters),
with random parameters. The decoder from latents to weights is left out, in the rival's favour: it runs once, not a
thousand times.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks import torch_device  # noqa: F401  its settings are PyTorch's

LATENT, CHANNELS, TIME = 192, (64, 128, 192), 128  # length of a latent, channels at full, half and quarter length
STEPS = 1000
GROUPS = 8


class ResBlock(nn.Module):
    """Two convolutions with the time's embedding added between them."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(GROUPS, inputs), nn.GroupNorm(GROUPS, channels)])
        self.convs = nn.ModuleList([nn.Conv1d(c, channels, 3, padding=1) for c in (inputs, channels)])
        self.time = nn.Linear(TIME, channels)
        self.skip = nn.Conv1d(inputs, channels, 1) if inputs != channels else nn.Identity()

    def forward(self, h: Float[Tensor, "batch c length"], time: Float[Tensor, "batch time"]):
        x = self.convs[0](F.silu(self.norms[0](h))) + self.time(time)[..., None]
        return self.skip(h) + self.convs[1](F.silu(self.norms[1](x)))


class UNet1D(nn.Module):
    """A UNet of three levels that predicts the noise in a latent."""

    def __init__(self):
        super().__init__()
        narrow, middle, wide = CHANNELS
        self.time = nn.Sequential(nn.Linear(TIME, TIME), nn.SiLU(), nn.Linear(TIME, TIME))
        self.first, self.last = nn.Conv1d(1, narrow, 3, padding=1), nn.Conv1d(narrow, 1, 3, padding=1)
        self.down = nn.ModuleList([ResBlock(narrow, narrow), ResBlock(middle, middle)])
        self.shorten = nn.ModuleList(
            nn.Conv1d(a, b, 4, stride=2, padding=1) for a, b in ((narrow, middle), (middle, wide))
        )
        self.inner = nn.ModuleList([ResBlock(wide, wide) for _ in range(7)])
        self.lengthen = nn.ModuleList(
            nn.ConvTranspose1d(a, b, 4, stride=2, padding=1) for a, b in ((wide, middle), (middle, narrow))
        )
        self.up = nn.ModuleList([ResBlock(2 * middle, middle), ResBlock(2 * narrow, narrow)])

    def forward(self, x: Float[Tensor, "batch latent"], t: Float[Tensor, " batch"]) -> Float[Tensor, "batch latent"]:
        frequencies = torch.exp(torch.linspace(0, -math.log(10_000), TIME // 2))
        angle = t[:, None] * frequencies
        time = F.silu(self.time(torch.cat([angle.sin(), angle.cos()], -1)))
        h, skips = self.first(x[:, None]), []
        for block, shorten in zip(self.down, self.shorten, strict=True):
            skips.append(block(h, time))
            h = shorten(skips[-1])
        for block in self.inner:
            h = block(h, time)
        for lengthen, block in zip(self.lengthen, self.up, strict=True):
            h = block(torch.cat([lengthen(h), skips.pop()], 1), time)
        return self.last(F.silu(h))[:, 0]


@torch.inference_mode()
def denoised(model: UNet1D, x: Float[Tensor, "batch latent"], steps: int) -> Float[Tensor, "batch latent"]:
    """The first `steps` of the STEPS steps from noise to latents (Ho et al. 2020, Algorithm 2)."""
    betas = torch.linspace(1e-4, 0.02, STEPS)
    kept = torch.cumprod(1 - betas, 0)
    for t in range(STEPS - 1, STEPS - 1 - steps, -1):
        noise = model(x, torch.full((len(x),), float(t)))
        x = (x - betas[t] / torch.sqrt(1 - kept[t]) * noise) / torch.sqrt(1 - betas[t])
        x = x + torch.sqrt(betas[t]) * torch.randn_like(x) * (t > 0)
    return x
