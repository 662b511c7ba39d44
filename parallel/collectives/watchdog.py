"""A thread that knows the collective its rank is in, and ends the job when one takes too long.

Each rank's thread writes to the job's store, once a second, how far it is on each axis; the one
that runs out of patience reads who is behind and names them. Threads run while the main thread
spins in native code: PyTorch gives up the interpreter's lock around operators.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from threading import Event, Thread
from typing import Any

from torch._C._distributed_c10d import PrefixStore, TCPStore

from parallel.collectives.communicator import Communicator, Current
from parallel.collectives.lifeline import end_process
from parallel.collectives.mesh import Exchange, Mesh
from parallel.errors import CollectiveTimeout

BEAT_SECONDS = 1.0


class Watchdog:
    """`expired` is called with a `CollectiveTimeout`; the default prints it and ends this rank."""

    def __init__(
        self,
        rank: int,
        communicators: list[Communicator],
        exchange: Exchange,
        timeout_seconds: float,
        expired: Callable[[CollectiveTimeout], None],
    ):
        self._rank, self._communicators, self._exchange = rank, communicators, exchange
        self._timeout_seconds, self._expired = timeout_seconds, expired
        self._stopped = Event()
        self._thread = Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    @classmethod
    def start(
        cls,
        mesh: Mesh,
        timeout_seconds: float,
        expired: Callable[[CollectiveTimeout], None] = lambda error: end_process(str(error)),
    ) -> Watchdog:
        communicators = [c for c in mesh.communicators.values() if c.size > 1]
        world = mesh.exchange.world_size
        exchange = mesh.exchange
        if world > 1:
            # A connection of its own: the main thread may be waiting on the shared one.
            store = TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=False,
                timeout=timedelta(seconds=30),
            )
            exchange = Exchange(PrefixStore("watchdog", store), mesh.rank, world)
        return cls(mesh.rank, communicators, exchange, timeout_seconds, expired)

    def _watch(self) -> None:
        while self._communicators and not self._stopped.wait(BEAT_SECONDS):
            currents = [c.current for c in self._communicators]
            try:
                self._beat(currents)
                for current in currents:
                    if current and time.monotonic() - current.since > self._timeout_seconds:
                        self._expired(self._describe(current))
                        return
            except (RuntimeError, OSError):
                # The store left with rank 0: the lifeline tells that story.
                return

    def _beat(self, currents: list[Current | None]) -> None:
        doing = next((_words(c) for c in currents if c is not None), "in no collective")
        reached = {c.axis: c.sequence for c in self._communicators}
        self._exchange.put(
            f"beat/{self._rank}", {"reached": reached, "doing": doing, "at": time.time()}
        )

    def _describe(self, current: Current) -> CollectiveTimeout:
        group = next(c for c in self._communicators if c.axis == current.axis)
        missing = []
        for rank in group.ranks:
            if rank == self._rank:
                continue
            beat: dict[str, Any] = self._exchange.get(f"beat/{rank}")
            silent = time.time() - beat["at"]
            if silent > 5 * BEAT_SECONDS:
                missing.append(f"rank {rank} (no sign of life for {silent:.0f} s)")
            elif beat["reached"].get(current.axis, 0) < current.sequence:
                missing.append(f"rank {rank} ({beat['doing']})")
        names = ", ".join(missing) if missing else "none: all have reached it"
        waited = time.monotonic() - current.since
        return CollectiveTimeout(
            f"rank {self._rank}: {_words(current)} waited {waited:.0f} s "
            f"(limit {self._timeout_seconds:.0f} s); missing: {names}"
        )

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=10)


def _words(c: Current) -> str:
    dtype = c.dtype.removeprefix("torch.")
    return f"{c.op} over {c.axis} of {list(c.shape)} {dtype} ({c.layer}, number {c.sequence})"
