"""What the instruments themselves cost: how long one record takes, and how many there were."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

_ROUNDS = 9
_CALLS = 50


def seconds_of(
    operation: Callable[[], object], now: Callable[[], float] = time.perf_counter
) -> float:
    """Of one call: the median over rounds of many."""
    rounds = []
    for _ in range(_ROUNDS):
        began = now()
        for _ in range(_CALLS):
            operation()
        rounds.append((now() - began) / _CALLS)
    return median(rounds)


@dataclass(frozen=True)
class RecordCosts:
    """Seconds of one record: of a collective, of a step's own, of an entry of memory."""

    collective: float
    step: float
    memory: float


@dataclass(frozen=True)
class InstrumentCost:
    """Of one rank, over all its steps."""

    steps: int
    collectives: int
    spans: int
    memory_entries: int
    costs: RecordCosts

    @property
    def seconds(self) -> float:
        return (
            (self.collectives + self.spans) * self.costs.collective
            + self.steps * self.costs.step
            + self.memory_entries * self.costs.memory
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds}
