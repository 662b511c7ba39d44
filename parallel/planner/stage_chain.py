"""Prefix sums over the chain, and how far a stage gets from each item."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import inf

from parallel.planner.stage_problem import Option, StageProblem, StageRun, Staging, stage_bytes

Reach = tuple[tuple[int, ...], ...]
"""For each option and first item: the furthest end that a stage may have; the item itself where
it fits not even alone. Shorter stages always fit, and ends never fall from item to item."""


class Chain:
    def __init__(self, problem: StageProblem):
        self.problem, self.items = problem, problem.items
        self.sums = [tuple(accumulate(o.seconds, initial=0.0)) for o in problem.options]
        self._by_memory = [_memory_reach(o) for o in problem.options]

    def seconds(self, option: int, first: int, end: int) -> float:
        sums = self.sums[option]
        return self.problem.options[option].stage_seconds + (sums[end] - sums[first])

    def reach(self, limit_seconds: float = inf) -> Reach:
        """Within the memory, and within a limit on each stage's time."""
        if limit_seconds == inf:
            return tuple(self._by_memory)
        found = []
        for number, bound in enumerate(self._by_memory):
            sums, fixed = self.sums[number], self.problem.options[number].stage_seconds
            ends, end = [], 0
            for first in range(self.items):
                end, most, start = max(end, first), bound[first], sums[first]
                while end < most and fixed + (sums[end + 1] - start) <= limit_seconds:
                    end += 1
                ends.append(end)
            found.append(tuple(ends))
        return tuple(found)

    def next_seconds(self, reach: Reach) -> float:
        """The least time limit under which some stage would get further."""
        return min(
            (
                self.seconds(number, first, end + 1)
                for number, ends in enumerate(reach)
                for first, end in enumerate(ends)
                if end < self._by_memory[number][first]
            ),
            default=inf,
        )

    def evaluate(self, stages: Sequence[StageRun]) -> Staging:
        """The figures of a cut."""
        problem = self.problem
        times = [self.seconds(s.option, s.first, s.end) for s in stages]
        used = [problem.options[s.option] for s in stages]
        return Staging(
            tuple(stages),
            bottleneck_seconds=max(times),
            total_seconds=sum(times)
            + sum(problem.hop(a.option, b.option) for a, b in pairwise(stages)),
            devices=sum(o.tp for o in used),
            price=sum(o.tp * problem.pools[o.pool].price for o in used),
        )


def _memory_reach(option: Option) -> tuple[int, ...]:
    items, sums = len(option.seconds), tuple(accumulate(option.item_bytes, initial=0))
    room = option.budget_bytes - option.stage_bytes
    ends, end = [], 0
    for first in range(items):
        end = max(end, first)
        while end < items and sums[end + 1] - sums[first] <= room:
            end += 1
        ends.append(end)
    if stage_bytes(option, 0, items) <= option.budget_bytes:
        ends[0] = items
    return tuple(ends)
