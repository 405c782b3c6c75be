"""Regions of one continuous factor, on a circle or on a line, and the tasks inside them.

The range of a factor is cut into regions, once, before any task is made:

  unseen      the regions of `tasks.unseen`: extrapolation, nothing near their middle is in the zoo
  interp      narrow gaps: the seen neighbours on both sides are `gap_width` apart
  validation  gaps of `validation_gaps`, the only ones that may select anything
  seen        the rest, sampled evenly

A line is a circle that a region of no width cuts at 0.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from pdiff.errors import PdiffError

Region = tuple[float, float]  # [start, end), 0 <= start < length, start < end <= start + length
LEAST_FREE = 1 / 36  # of the range, which `tasks.unseen` has to leave


@dataclasses.dataclass(frozen=True)
class Range:
    """The values of a factor, from 0 to `length` units; a range that `wraps` is a circle."""

    length: float
    unit: str
    wraps: bool

    def parse(self, text: str) -> tuple[Region, ...]:
        """On a circle of 360, '60:90,350:10' -> ((60, 90), (350, 370)). An empty string is no region.

        Raises:
          PdiffError: not of that form, outside the range, empty, backwards on a line, or overlapping regions.
        """
        regions = []
        for item in filter(None, (s.strip() for s in text.split(","))):
            try:
                start, end = (float(s) for s in item.split(":"))
            except ValueError:
                start = end = np.nan
            ordered = start < end or (self.wraps and 0 < start - end < self.length)
            if not (0 <= start <= self.length and 0 <= end <= self.length and ordered):
                order, example = ("different", "60:90,216:234") if self.wraps else ("in that order", "45:60,85:100")
                raise PdiffError(
                    f"tasks.unseen: got {item!r} in {text!r}; allowed: 'start:end' in {self.unit} from 0 to "
                    f"{self.length:g}, start and end {order}, separated by commas, as in '{example}'"
                )
            regions.append((start % self.length, end if end > start else end + self.length))
            if regions[-1][0] == 0 and start == self.length:
                regions[-1] = (0.0, end)
        for a, b in itertools.combinations(regions, 2):
            if self.inside(b[0], a) or self.inside(a[0], b):
                raise PdiffError(f"tasks.unseen: the regions {a} and {b} of {text!r} overlap")
        return tuple(regions)

    def divide(self, config: ConfigDict) -> dict[str, tuple[Region, ...]]:
        """Where the held-out regions lie: `unseen` as typed, the gaps evenly over what is left.

        A gap is moved until it lies inside one seen region with a margin of a quarter of its width, and
        narrowed where there is little left, so that gaps never take more than a third of it.

        Raises:
          PdiffError: the regions are malformed, or leave no room for the seen tasks.
        """
        unseen = self.parse(config.unseen)
        free = self.complement(unseen)
        left, least = sum(b - a for a, b in free), self.length * LEAST_FREE
        widths = [("interp", config.gap_width)] * config.num_gaps
        for i, width in enumerate(config.validation_gaps):  # spread among the interp gaps
            widths.insert((2 * i + 1) * (len(widths) + 1) // (2 * len(config.validation_gaps)), ("validation", width))
        if left < least:
            raise PdiffError(
                f"tasks.unseen: {config.unseen!r} leaves {left:g} of {self.length:g} {self.unit} for seen tasks; "
                f"at least {least:.3g} are needed"
            )
        held: dict[str, list[Region]] = {"unseen": list(unseen), "interp": [], "validation": []}
        shrink = min(1.0, left / 3 / max(sum(w for _, w in widths), 1e-9))
        for i, (split, width) in enumerate(widths):
            held[split].append(self._place(free, (i + 0.5) / len(widths) * left, width * shrink))
        return {split: tuple(regions) for split, regions in held.items()}

    def complement(self, regions: Sequence[Region]) -> list[Region]:
        """The regions between `regions`; the whole range when there are none."""
        ordered = sorted(regions if self.wraps else [(0.0, 0.0), *regions])
        if not ordered:
            return [(0.0, self.length)]
        ends = [*ordered[1:], (ordered[0][0] + self.length, 0.0)]
        free = [(a[1], b[0]) for a, b in zip(ordered, ends, strict=True) if b[0] - a[1] > 1e-9]
        return [(a % self.length, a % self.length + (b - a)) for a, b in free]

    def inside(self, value: float, region: Region) -> bool:
        """Whether `value` lies in the region."""
        return (value - region[0]) % self.length < region[1] - region[0]

    def _place(self, free: list[Region], position: float, width: float) -> Region:
        """A gap of `width` centred `position` units along the free regions, moved inside the one it falls in."""
        for start, end in free:
            if position <= end - start:
                width = min(width, (end - start) / 1.5)
                margin = 0.75 * width
                centre = min(max(start + position, start + margin), end - margin)
                return ((centre - width / 2) % self.length, (centre - width / 2) % self.length + width)
            position -= end - start
        raise AssertionError("a position lies within the free length")


def spread(regions: Sequence[Region], count: int) -> list[float]:
    """`count` values strictly inside the regions, evenly and in proportion to the regions' lengths."""
    if count == 0 or not regions:
        return []
    lengths = np.array([end - start for start, end in regions])
    exact = lengths / lengths.sum() * count
    share = np.floor(exact).astype(int)
    share[np.argsort(share - exact, kind="stable")[: count - share.sum()]] += 1  # largest remainders
    return [
        start + (i + 0.5) * (end - start) / n for (start, end), n in zip(regions, share, strict=True) for i in range(n)
    ]
