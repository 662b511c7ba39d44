"""How many ranks each mesh axis has, and where a rank stands in the mesh."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.errors import LayoutError

AXES = ("tp", "pp", "dp")


@dataclass(frozen=True)
class Coordinates:
    """One rank's place along each axis."""

    tp: int
    pp: int
    dp: int


@dataclass(frozen=True)
class Degrees:
    """The sizes of the mesh axes. Ranks are numbered with tp fastest, then pp, then dp,
    so that a tensor-parallel group is neighbouring devices."""

    tp: int = 1
    pp: int = 1
    dp: int = 1

    def __post_init__(self) -> None:
        for axis in AXES:
            size = getattr(self, axis)
            if not isinstance(size, int) or size < 1:
                raise LayoutError(f"{axis}={size} is not a degree; give an integer of at least 1")

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp

    def coordinates(self, rank: int) -> Coordinates:
        return Coordinates(
            tp=rank % self.tp, pp=rank // self.tp % self.pp, dp=rank // (self.tp * self.pp)
        )

    def rank(self, tp: int, pp: int, dp: int) -> int:
        return (dp * self.pp + pp) * self.tp + tp

    def group(self, axis: str, rank: int) -> tuple[int, ...]:
        """The ranks that differ from `rank` in `axis` alone, itself included, in order."""
        at = self.coordinates(rank)
        place = {"tp": at.tp, "pp": at.pp, "dp": at.dp}
        return tuple(self.rank(**{**place, axis: i}) for i in range(getattr(self, axis)))

    def __str__(self) -> str:
        return f"tp={self.tp} pp={self.pp} dp={self.dp}"
