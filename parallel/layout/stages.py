"""Stage cuts: which layers each pipeline stage holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from parallel.errors import LayoutError


@dataclass(frozen=True)
class Stage:
    """Layers `[first, end)`; the first stage has the embedding, the last one the head."""

    first: int
    end: int
    embedding: bool
    head: bool

    @property
    def layers(self) -> range:
        return range(self.first, self.end)


def cut(counts: Sequence[int]) -> tuple[Stage, ...]:
    """Stages of the given numbers of layers."""
    bounds = [0, *accumulate(counts)]
    last = len(counts) - 1
    return tuple(
        Stage(a, b, embedding=i == 0, head=i == last) for i, (a, b) in enumerate(pairwise(bounds))
    )


def given(counts: Sequence[int], layers: int, pp: int) -> tuple[Stage, ...]:
    """Stages as the user wrote them (`stages=[10,20]`)."""
    if len(counts) != pp or sum(counts) != layers or min(counts, default=0) < 1:
        raise LayoutError(
            f"stages={list(counts)} must be {pp} positive numbers (pp={pp}) that sum to the "
            f"model's {layers} layers"
        )
    return cut(counts)


def balanced(
    costs: Sequence[float],
    first: float,
    last: float,
    pp: int,
    stage_tp: Sequence[int] | None = None,
) -> tuple[Stage, ...]:
    """The cut whose dearest stage is cheapest, by dynamic programming over cut points.

    `costs` per layer; `first` and `last` are what the embedding and the head add to the end
    stages. The ranks of a stage share its costs (`stage_tp`). Equal bottlenecks are told apart by
    the sum of squares, as far as the programme keeps them: mostly the more even cut.
    """
    layers = len(costs)
    if pp > layers:
        raise LayoutError(
            f"pp={pp} is more than the model's {layers} layers; legal here: 1 to {layers}"
        )
    prefix = [0.0, *accumulate(costs)]

    def cost(stage: int, a: int, b: int) -> float:
        extra = (first if stage == 0 else 0.0) + (last if stage == pp - 1 else 0.0)
        return (prefix[b] - prefix[a] + extra) / (1 if stage_tp is None else stage_tp[stage])

    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, ())}
    for stage in range(pp):
        reach: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        left = pp - 1 - stage
        ends = [layers] if left == 0 else range(stage + 1, layers - left + 1)
        for b in ends:
            reach[b] = min(
                (max(worst, c), squares + c * c, (*counts, b - a))
                for a, (worst, squares, counts) in best.items()
                if a < b
                for c in (cost(stage, a, b),)
            )
        best = reach
    return cut(best[layers][2])
