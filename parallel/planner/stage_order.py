"""The best cut when the option of every stage is given, in order: ranks have their numbers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import inf

from parallel.planner.stage_chain import Chain, Reach
from parallel.planner.stage_problem import StageRun

_MORE = 1 + 1e-9
"""Times are the same up to this factor: sums in another order."""


def least_bottleneck(chain: Chain, options: Sequence[int]) -> tuple[StageRun, ...] | None:
    """The cut whose slowest stage is the fastest, and of those with the least time in all; None
    when the items don't fit."""
    runs = least_sum(chain, chain.reach(), options)
    if runs is None:
        return None
    low, high = 0.0, chain.evaluate(runs).bottleneck_seconds
    while low < high * (1 - 1e-12):
        reach = chain.reach((low + high) / 2)
        found = least_sum(chain, reach, options)
        if found is None:
            low = chain.next_seconds(reach)
        else:
            runs, high = found, chain.evaluate(found).bottleneck_seconds
    return runs


def least_latency(chain: Chain, options: Sequence[int]) -> tuple[StageRun, ...] | None:
    """The cut with the least time in all, and of those the one whose slowest stage is the fastest;
    None when the items don't fit."""
    runs = least_sum(chain, chain.reach(), options)
    if runs is None:
        return None
    best = chain.evaluate(runs)
    low, high = 0.0, best.bottleneck_seconds
    while low < high * (1 - 1e-12):
        reach = chain.reach((low + high) / 2)
        found = least_sum(chain, reach, options)
        answer = None if found is None else chain.evaluate(found)
        if found is None or answer is None or answer.total_seconds > best.total_seconds * _MORE:
            low = chain.next_seconds(reach)
        else:
            runs, high = found, answer.bottleneck_seconds
    return runs


def least_sum(chain: Chain, reach: Reach, options: Sequence[int]) -> tuple[StageRun, ...] | None:
    """The cut with the least time in all, each stage within `reach`; among equal ones, stages near
    the end are longer. A programme over stages and items with a sliding window."""
    items = chain.items
    after = [inf] * items + [0.0]
    chosen: list[list[int]] = []
    for option in reversed(options):
        sums, ends = chain.sums[option], [0] * (items + 1)
        window: deque[tuple[float, int]] = deque()
        now = [inf] * (items + 1)
        for first in range(items - 1, -1, -1):
            value = sums[first + 1] + after[first + 1]
            while window and window[-1][0] >= value:
                window.pop()
            window.append((value, first + 1))
            while window and window[0][1] > reach[option][first]:
                window.popleft()
            if window and window[0][0] < inf:
                now[first] = window[0][0] - sums[first]
                ends[first] = window[0][1]
        after = now
        chosen.append(ends)
    if after[0] == inf:
        return None
    at, runs = 0, []
    for option, ends in zip(options, reversed(chosen), strict=True):
        runs.append(StageRun(at, ends[at], option))
        at = ends[at]
    return tuple(runs)
