"""Times of one rank's monotonic clock on the clock of rank 0, all in ns.

Each rank asks rank 0 for its time, some times in a row. The answer was read between question and
reply, so half the way is its best estimate and half the round trip its error: the shortest round
trip counts (Cristian, Probabilistic clock synchronization, 1989).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """Asked at `sent_ns` and answered by `back_ns` here; `there_ns` is what rank 0 said."""

    sent_ns: int
    there_ns: int
    back_ns: int

    @property
    def trip_ns(self) -> int:
        return self.back_ns - self.sent_ns


@dataclass(frozen=True)
class Offset:
    """At `here_ns` rank 0's clock is `offset_ns` ahead, give or take `error_ns`."""

    here_ns: int
    offset_ns: int
    error_ns: int


def best_offset(answers: Iterable[Answer]) -> Offset:
    best = min(answers, key=lambda a: a.trip_ns)
    middle = best.sent_ns + best.trip_ns // 2
    return Offset(middle, best.there_ns - middle, -(-best.trip_ns // 2))


@dataclass
class ClockMap:
    """From this rank's clock to rank 0's. Between two measured offsets the clocks drift evenly;
    without any they are one clock."""

    offsets: list[Offset] = field(default_factory=list)

    def common_ns(self, here_ns: int) -> int:
        known = self.offsets
        if not known:
            return here_ns
        i = bisect_right(known, here_ns, key=lambda o: o.here_ns)
        if i in (0, len(known)):
            return here_ns + known[max(i - 1, 0)].offset_ns
        a, b = known[i - 1], known[i]
        drift = (b.offset_ns - a.offset_ns) * (here_ns - a.here_ns) // (b.here_ns - a.here_ns)
        return here_ns + a.offset_ns + drift
