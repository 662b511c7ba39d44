"""One clock for all ranks of a job: rank 0's.

Processes of one kernel share its monotonic clock, unless a container has a time namespace of its
own (time_namespaces(7)). Ranks of other machines ask rank 0, over a connection made for that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from parallel.collectives import links
from parallel.collectives.mesh import Mesh
from parallel.instrument.common_clock import Answer, ClockMap, best_offset
from parallel.requests.wire import Channel

_QUESTIONS = 32


class RankClock:
    """`origin_ns` is when rank 0 opened it, on the clock of all."""

    def __init__(
        self, rank: int, peers: dict[int, Channel], origin_ns: int, now: Callable[[], int]
    ):
        self._rank, self._peers, self._now = rank, peers, now
        self.origin_ns, self.map = origin_ns, ClockMap()

    @classmethod
    def open(
        cls, mesh: Mesh, clock: str | None = None, now: Callable[[], int] = time.monotonic_ns
    ) -> RankClock:
        """Every rank calls it. `clock` names the clock that `now` reads; ranks that give the same
        name share one."""
        name = clock_name() if clock is None else clock
        facts = mesh.exchange.collect("clock", [name, now()])
        shared = len({name for name, _ in facts}) == 1
        peers = {} if shared else links.open_star(mesh, "clock links", tuple(range(len(facts))))
        made = cls(mesh.rank, peers, facts[0][1], now)
        made.measure()
        return made

    def measure(self) -> None:
        """Measures this rank's offset anew; every rank calls it. Nothing where the clock is
        shared."""
        if self._rank == 0:
            for rank in sorted(self._peers):
                self._answer(self._peers[rank])
        elif self._peers:
            answers = [self._ask(self._peers[0]) for _ in range(_QUESTIONS)]
            self.map.offsets.append(best_offset(answers))

    def _answer(self, peer: Channel) -> None:
        for _ in range(_QUESTIONS):
            peer.receive()
            peer.send({"now": self._now()})

    def _ask(self, peer: Channel) -> Answer:
        sent = self._now()
        peer.send({})
        there = int(peer.receive()["now"])
        return Answer(sent, there, self._now())

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()


def clock_name() -> str:
    """The same for processes whose monotonic clock is the same."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    mark = boot.read_text().strip() if boot.exists() else os.uname().nodename
    try:
        return f"{mark} {os.readlink('/proc/self/ns/time')}"
    except OSError:
        return mark
