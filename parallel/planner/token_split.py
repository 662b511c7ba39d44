"""From how many tokens on a step is split over tensor-parallel ranks (sequence parallelism).

Each rank then does its share of norms and sums; a reduce-scatter and an all-gather take an
all-reduce's place. Steps that only decode are never split.
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.hardware.facts import Cluster
from parallel.layout.layout import Layout
from parallel.planner.formats import Formats
from parallel.planner.limits import EngineLimits
from parallel.planner.timing import StepModel
from parallel.planner.work import StepWork


def least_split_tokens(
    layout: Layout, cluster: Cluster, formats: Formats, limits: EngineLimits
) -> int | None:
    """The plan's `split_tokens`; None: no step is split. Under `auto` the least of
    `step_tokens`, its half, its quarter …, for which and above which the predicted step is shorter;
    none on CPU, whose backends have no reduce-scatter: there a split sums everything as well."""
    degrees, asked = layout.degrees, limits.sequence_parallel
    widest = max(degrees.tp_of(pp) for pp in range(degrees.pp))
    least = min(limits.requests, limits.step_tokens) + 1
    if asked == "off" or widest == 1 or least > limits.step_tokens:
        return None
    if asked == "on":
        return least
    ranks = range(degrees.world_size)
    if any(cluster.device(rank).type.kind == "cpu" for rank in ranks):
        return None
    saving = _Saving.of(layout, cluster, formats)
    found = None
    tokens = limits.step_tokens - limits.step_tokens % widest
    while tokens >= least and saving.seconds(tokens) > 0:
        found, tokens = tokens, tokens // 2
    return found


@dataclass(frozen=True)
class _Saving:
    whole: StepModel
    split: StepModel

    @classmethod
    def of(cls, layout: Layout, cluster: Cluster, formats: Formats) -> _Saving:
        return cls(
            StepModel(layout, cluster, formats), StepModel(layout, cluster, formats, split_tokens=1)
        )

    def seconds(self, tokens: int) -> float:
        """That a prompt's chunk takes less when it is split, if its ranks divide it."""
        work = StepWork.prompt(tokens)
        return self.whole.step(work).seconds - self.split.step(work).seconds
