"""Steps on their way through a pipeline, each behind the one before it.

The leader is the first stage's: it begins a step as soon as it has the tokens of those that must
be back before it, and takes tokens in between its own steps alone. A step that follows a prompt's
chunk waits for it in every stage, so that what a decode takes depends on what is beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Passage:
    """One step alone: seconds that it keeps each stage `busy`, and of its tokens' way `back` to
    the leader, which keeps nobody busy. `ahead` others are under way when it begins."""

    busy: tuple[float, ...]
    back: float = 0.0
    ahead: int = 0

    @property
    def seconds(self) -> float:
        return sum(self.busy) + self.back


def spans(passages: Sequence[Passage]) -> list[tuple[float, float]]:
    """When each step begins, and when the leader has its tokens. Steps end in their order."""
    found: list[tuple[float, float]] = []
    begun: list[float] = []
    arrived: list[float] = []
    free: list[float] = []
    for number, step in enumerate(passages):
        free = free or [0.0] * len(step.busy)
        while len(found) < number - step.ahead:
            free[0] = max(free[0], arrived[len(found)])
            found.append((begun[len(found)], free[0]))
        begun.append(free[0])
        ready = free[0]
        for stage, busy in enumerate(step.busy):
            ready = free[stage] = max(free[stage], ready) + busy
        arrived.append(ready + step.back)
    for number in range(len(found), len(begun)):
        free[0] = max(free[0], arrived[number])
        found.append((begun[number], free[0]))
    return found
