"""How a quantity grows with a size: the exponent of a power law, and whether that is more than the
work asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt

_SLACK = 0.15
"""Above what must be, before it is called too fast: caches fill up, clocks jitter."""
_LEAST_POINTS = 3


@dataclass(frozen=True)
class Exponent:
    """Of y ~ x^value; `error` is its standard error."""

    value: float
    error: float

    @classmethod
    def of(cls, sizes: Sequence[float], values: Sequence[float]) -> Exponent:
        """A line through the logarithms of the larger half of the sizes (at least three): what is
        there at any size hides growth at the small ones. Raises `ValueError` for fewer points, or
        values that aren't positive."""
        points = sorted(zip(sizes, values, strict=True))
        kept = points[-max(_LEAST_POINTS, (len(points) + 1) // 2) :]
        if len(kept) < _LEAST_POINTS or min(min(point) for point in kept) <= 0:
            raise ValueError(f"{points}: an exponent wants three points, all positive")
        across, up = [log(x) for x, _ in kept], [log(y) for _, y in kept]
        middle, height = sum(across) / len(kept), sum(up) / len(kept)
        spread = sum((x - middle) ** 2 for x in across)
        if spread == 0:
            raise ValueError(f"{points}: all of one size")
        slope = sum((x - middle) * (y - height) for x, y in zip(across, up, strict=True)) / spread
        rest = sum(
            (y - height - slope * (x - middle)) ** 2 for x, y in zip(across, up, strict=True)
        )
        return cls(slope, sqrt(rest / (len(kept) - 2) / spread))

    def exceeds(self, bound: float) -> bool:
        """Whether it is more than `bound` for certain: by two errors and a slack."""
        return self.value - 2 * self.error > bound + _SLACK

    def text(self) -> str:
        return f"{self.value:.2f} ± {self.error:.2f}"


@dataclass(frozen=True)
class Quantity:
    """One thing that was measured at every size of an axis. `bound`: the exponent that the work
    itself has where it grows fastest."""

    name: str
    unit: str
    bound: float
    values: Sequence[float]


@dataclass(frozen=True)
class Axis:
    """`name` is what was made larger, `note` what stayed."""

    name: str
    note: str
    sizes: Sequence[int]
    quantities: Sequence[Quantity]

    def exponent(self, quantity: Quantity) -> Exponent:
        return Exponent.of([float(size) for size in self.sizes], quantity.values)

    def too_fast(self) -> list[str]:
        """What grows faster than it must, in words."""
        found = ((quantity, self.exponent(quantity)) for quantity in self.quantities)
        return [
            f"{quantity.name} grows with {self.name} to the power of {exponent.text()}; "
            f"{quantity.bound:g} is enough"
            for quantity, exponent in found
            if exponent.exceeds(quantity.bound)
        ]
