"""Timing of small pieces of work, on one rank or on all of them at once.

Every case is called once to warm up and once to see how long it takes; then all cases take turns,
round after round, so that a disturbance falls on all of them. All ranks do the same number of
calls in the same order: a collective is a case like another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from parallel.collectives.exchange import Exchange
from parallel.devices.base import Device

LEAST_SECONDS = 2e-3
"""A shorter case is called several times in a row."""
LEAST_ROUNDS, MOST_ROUNDS = 3, 15
MOST_BUDGETS = 2.0
"""Fewer rounds do where even the least number of them would take so many times what it may."""
_MOST_CALLS = 500


@dataclass(frozen=True)
class Timing:
    """The median over `samples`: what is predicted from it, a mean step, is disturbed as often.
    `spread` is how far the upper quartile lies above the lower one, as a fraction."""

    seconds: float
    spread: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        low, high = lower_quartile(seconds), -lower_quartile([-s for s in seconds])
        return cls(median(seconds), high / low - 1 if low > 0 else 0.0, len(seconds))


def lower_quartile(values: Sequence[float]) -> float:
    """The median of the smaller half, the middle value included."""
    return median(sorted(values)[: (len(values) + 1) // 2])


class Peers:
    """The ranks that measure together, and what they tell each other."""

    def __init__(self, exchange: Exchange, name: str = "all", ranks: Sequence[int] | None = None):
        self.ranks = tuple(range(exchange.world_size) if ranks is None else ranks)
        self.rank = exchange.rank
        self._exchange, self._name, self._serial = exchange, name, 0

    def among(self, name: str, ranks: Sequence[int]) -> Peers:
        """Some of them, by a name that no others have had."""
        return Peers(self._exchange, name, ranks)

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value (JSON), on every rank."""
        self._serial += 1
        key = f"calibration/{self._name}/{self._serial}"
        return self._exchange.collect(key, value, self.ranks)

    def align(self) -> None:
        self.gather(None)

    def agree(self, value: bool) -> bool:
        """Whether all say so; they go on together."""
        return all(self.gather(value))

    def most(self, values: Sequence[float]) -> list[float]:
        """The largest of each value over the ranks."""
        return [max(column) for column in zip(*self.gather(list(values)), strict=True)]


class Bench:
    """`advance` is told the share of each measurement that is done, 1 in all."""

    def __init__(self, device: Device, peers: Peers, advance: Callable[[float], None]):
        self.device, self.peers, self._advance = device, peers, advance

    def measure(
        self,
        cases: Sequence[Callable[[], object]],
        budget_seconds: float,
        before: Callable[[], object] | None = None,
    ) -> list[Timing]:
        """Seconds of one call of each case, within about the budget but three rounds at least.

        `before` is called ahead of each stretch, untimed: it lets ranks start together."""
        for case in cases:
            case()
        self.peers.align()
        first = self.peers.most([self._stretch(case, 1, before)[0] for case in cases])
        calls = [max(1, min(_MOST_CALLS, round(LEAST_SECONDS / s))) for s in first]
        round_seconds = sum(n * s for n, s in zip(calls, first, strict=True))
        affordable = int(budget_seconds / max(round_seconds, 1e-9))
        rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, affordable))
        found: list[list[float]] = [[] for _ in cases]
        began = time.monotonic()
        for turn in range(rounds):
            in_time = turn == 0 or time.monotonic() - began < MOST_BUDGETS * budget_seconds
            if not self.peers.agree(in_time):
                self._advance(1 - turn / rounds)
                break
            for case, n, seconds in zip(cases, calls, found, strict=True):
                seconds += self._stretch(case, n, before)
            self._advance(1 / rounds)
        return [Timing.of(seconds) for seconds in found]

    def _stretch(
        self, case: Callable[[], object], calls: int, before: Callable[[], object] | None
    ) -> list[float]:
        """Each call on its own where a timer says at once; their mean where they queue up."""
        if before is not None:
            before()
        self.device.synchronize()
        timers = [self.device.timer() for _ in range(calls)]
        if timers[0].immediate:
            for timer in timers:
                timer.start()
                case()
                timer.stop()
            return [timer.seconds() for timer in timers]
        timers[0].start()
        for _ in range(calls):
            case()
        timers[0].stop()
        return [timers[0].seconds() / calls]
