"""How long a step takes at least: chips as numbers, and the largest of three times.

A device computes, moves data to and from its memory, and sends data to others, at best all at once (Williams et al.
2009, Roofline). So a step takes no less than

    max(FLOPs / peak, bytes / memory bandwidth, bytes sent / link bandwidth)

which is the prediction. A real step takes longer: matrices that do not fill the units, work that cannot overlap,
latencies, the host.

Products of float32 matrices count like those of bfloat16: by JAX's default precision on TPU their inputs are rounded to
that. With `jax_default_matmul_precision` = 'highest' each takes six passes.
"""

import dataclasses

from pdiff.errors import PdiffError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Facts about one chip, which is one device.

    Attributes:
      name: as in a topology.
      bf16: FLOP/s of its matrix units on bfloat16.
      memory: bytes; GiB times 2^30 where the source says GB, as the compiler counts.
      bandwidth: bytes/s of that memory.
      link: bytes/s in all directions in and out, the source's bidirectional bandwidth of a chip.
      axes: dimensions of the torus.
      dcn: bytes/s out to other slices, the host's or pod's network shared by its chips.
      config: how libtpu calls the use of both cores as one device, '' where that is the default.
      source: where these are from.
    """

    name: str
    bf16: float
    memory: float
    bandwidth: float
    link: float
    axes: int
    dcn: float
    config: str = ""
    source: str = ""


DOCS = "https://docs.cloud.google.com/tpu/docs/"
# v4's page gives no link bandwidth: Jouppi et al. 2023 (TPU v4, section 2) has 6 links of 50 GB/s each way. Where no
# page gives a data-centre bandwidth of the chip, it is that of v5e's pod over its chips, 6.4 Tbit/s / 256.
CHIPS = {
    c.name: c
    for c in (
        Chip("v4", 275e12, 32 * 2**30, 1200e9, 600e9, 3, 3.1e9, "megacore", f"{DOCS}v4 and arXiv 2304.01433"),
        Chip("v5e", 197e12, 16 * 2**30, 819e9, 400e9, 2, 3.1e9, "", f"{DOCS}v5e"),
        Chip("v5p", 459e12, 95 * 2**30, 2765e9, 1200e9, 3, 6.25e9, "", f"{DOCS}v5p"),
        Chip("v6e", 918e12, 32 * 2**30, 1600e9, 800e9, 2, 12.5e9, "", f"{DOCS}v6e"),
    )
}


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds that each of the three takes alone."""

    compute: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        """The largest."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """Which one that is."""
        return max(vars(self), key=vars(self).get)


def times(chip: Chip, flops: float, moved: float, sent: float) -> Times:
    """Of one device's FLOPs, bytes to and from memory and bytes sent, as `hlo.Collective.sent` counts them.

    A ring around one axis of the torus goes both ways round at once, so it sends at half of the axis's bidirectional
    bandwidth, which is a chip's over its axes: XLA may use more axes, hence a collective may take less.
    """
    return Times(flops / chip.bf16, moved / chip.bandwidth, sent / ring_bandwidth(chip))


def ring_bandwidth(chip: Chip) -> float:
    """Bytes/s that a chip sends on a ring around one axis of the torus."""
    return chip.link / chip.axes / 2


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as 'v5e:4x4'.

    Raises:
      PdiffError: it is not one of CHIPS.
    """
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise PdiffError(f"--topology: got {topology!r}; allowed: {', '.join(CHIPS)}, a colon, and a shape")
    return CHIPS[name]
