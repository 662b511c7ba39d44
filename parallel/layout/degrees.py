"""How many ranks each mesh axis has, and where a rank stands in the mesh.

Stages may differ in tp. Hidden states are whole on every tensor-parallel rank of a stage, so any
of them can feed the next one: rank j of n takes them from rank ⌊j·t/n⌋ of the t before it. With
equal degrees that is its own place; otherwise a rank feeds several, or none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

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
    so that a tensor-parallel group is neighbouring devices.

    `stage_tp` is given where stages differ in tp, and `tp` is then the largest of them."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    stage_tp: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for axis in AXES:
            size = getattr(self, axis)
            if not isinstance(size, int) or size < 1:
                raise LayoutError(f"{axis}={size} is not a degree; give an integer of at least 1")
        if self.stage_tp is None:
            return
        check_stage_tp(self.stage_tp)
        if (self.tp, self.pp) != (max(self.stage_tp), len(self.stage_tp)):
            raise LayoutError(
                f"{_stages(self.stage_tp)} means tp={max(self.stage_tp)} (the largest) and "
                f"pp={len(self.stage_tp)}, not tp={self.tp} pp={self.pp}; leave tp and pp out"
            )
        # Equal degrees have one spelling, so that equal meshes are equal.
        if len(set(self.stage_tp)) == 1:
            object.__setattr__(self, "stage_tp", None)

    @classmethod
    def of_stages(cls, stage_tp: Sequence[int], dp: int = 1) -> Degrees:
        """The tensor-parallel degree of each stage, in order."""
        check_stage_tp(stage_tp)
        return cls(max(stage_tp), len(stage_tp), dp, tuple(stage_tp))

    def tp_of(self, pp: int) -> int:
        """Ranks that share each layer of stage `pp`."""
        return self.tp if self.stage_tp is None else self.stage_tp[pp]

    @cached_property
    def _bounds(self) -> tuple[int, ...]:
        """The first rank of each stage of the first replica, and the number of its ranks."""
        return (0, *accumulate(self.tp_of(pp) for pp in range(self.pp)))

    @property
    def replica_size(self) -> int:
        return self._bounds[-1]

    @property
    def world_size(self) -> int:
        return self.replica_size * self.dp

    def coordinates(self, rank: int) -> Coordinates:
        dp, within = divmod(rank, self.replica_size)
        pp = bisect_right(self._bounds, within) - 1
        return Coordinates(within - self._bounds[pp], pp, dp)

    def rank(self, tp: int, pp: int, dp: int) -> int:
        return dp * self.replica_size + self._bounds[pp] + tp

    def replica(self, dp: int) -> tuple[int, ...]:
        """All ranks of a replica, its leader first."""
        return tuple(range(dp * self.replica_size, (dp + 1) * self.replica_size))

    def stage_ranks(self, pp: int, dp: int) -> tuple[int, ...]:
        """The ranks of a stage, by tp coordinate."""
        return tuple(self.rank(tp, pp, dp) for tp in range(self.tp_of(pp)))

    def sender(self, rank: int) -> int | None:
        """The rank of the stage before that `rank` gets its hidden states from."""
        at = self.coordinates(rank)
        if at.pp == 0:
            return None
        before = self.tp_of(at.pp - 1)
        return self.rank(at.tp * before // self.tp_of(at.pp), at.pp - 1, at.dp)

    def receivers(self, rank: int) -> tuple[int, ...]:
        """The ranks of the next stage that get their hidden states from `rank`."""
        at = self.coordinates(rank)
        if at.pp == self.pp - 1:
            return ()
        here, following = self.tp_of(at.pp), self.tp_of(at.pp + 1)
        fed = range(-(-at.tp * following // here), -(-(at.tp + 1) * following // here))
        return tuple(self.rank(tp, at.pp + 1, at.dp) for tp in fed)

    def group(self, axis: str, rank: int) -> tuple[int, ...]:
        """The ranks that `rank` shares an axis with, itself included, in order. Of pp: all that
        are fed, over any number of stages, by the same rank of the first one."""
        at = self.coordinates(rank)
        if axis == "tp":
            return self.stage_ranks(at.pp, at.dp)
        if axis == "dp":
            return tuple(self.rank(at.tp, at.pp, dp) for dp in range(self.dp))
        while (sender := self.sender(rank)) is not None:
            rank = sender
        found: tuple[int, ...] = (rank,)
        fed = found
        while fed := tuple(r for sender in fed for r in self.receivers(sender)):
            found += fed
        return found

    def __str__(self) -> str:
        if self.stage_tp is None:
            return f"tp={self.tp} pp={self.pp} dp={self.dp}"
        return f"{_stages(self.stage_tp)} dp={self.dp}"


def check_stage_tp(stage_tp: Sequence[int]) -> None:
    """Raises `LayoutError` unless there is a degree for each of one stage or more."""
    if not stage_tp or any(not isinstance(tp, int) or tp < 1 for tp in stage_tp):
        raise LayoutError(
            f"{_stages(stage_tp)} must give each stage's tp, integers of at least 1, "
            "such as stage_tp=[2,1]"
        )


def _stages(stage_tp: Sequence[int]) -> str:
    return f"stage_tp=[{','.join(map(str, stage_tp))}]"
