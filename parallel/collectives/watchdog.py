"""A thread that knows the collective its rank is in, and ends the job when one takes too long.

Each rank's thread writes to the job's store, once a second, how far it is on each axis; the one
that runs out of patience reads who is behind and names them. Threads run while the main thread
spins in native code: PyTorch gives up the interpreter's lock around operators.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from threading import Event, Thread
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store

from parallel.collectives.communicator import Communicator, Current
from parallel.collectives.exchange import Exchange
from parallel.collectives.lifeline import end_process
from parallel.collectives.mesh import Mesh
from parallel.errors import CollectiveTimeout

BEAT_SECONDS = 1.0
_BEATS_OF_SILENCE = 3


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
        self._beats = 0
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
        exchange = mesh.exchange
        if communicators:
            # A connection of its own: the main thread may be waiting on the shared one.
            store: Store = exchange.store.clone()  # type: ignore[attr-defined]
            store.set_timeout(timedelta(seconds=30))
            exchange = Exchange(PrefixStore("watchdog", store), mesh.rank, exchange.world_size)
        return cls(mesh.rank, communicators, exchange, timeout_seconds, expired)

    def _watch(self) -> None:
        if self._communicators:
            # CUDA takes a context on the first GPU for a thread that hasn't said which is its own.
            self._communicators[0].device.activate()
        while self._communicators and not self._stopped.wait(BEAT_SECONDS):
            self._beat()
            for communicator in self._communicators:
                late = communicator.waiting()
                if late is None or time.monotonic() - late.since <= self._timeout_seconds:
                    continue
                missing = self._missing(communicator, late)
                if communicator.waiting() == late:
                    self._expired(self._timeout(late, missing))
                    return

    def _beat(self) -> None:
        doing = next((_words(c) for c in self._waiting()), "in no collective")
        reached = {c.axis: c.sequence for c in self._communicators}
        self._beats += 1
        body = {"beat": self._beats, "reached": reached, "doing": doing}
        try:
            self._exchange.put(f"beat/{self._rank}", body)
        except (RuntimeError, OSError):
            # The store left with rank 0, whose death the lifeline tells. A rank that then waits
            # too long still says so, without its peers' state.
            return

    def _waiting(self) -> Iterable[Current]:
        found = (c.waiting() for c in self._communicators)
        return (current for current in found if current is not None)

    def _missing(self, group: Communicator, late: Current) -> str:
        """Who is behind, and what they do instead. Takes some beats, to see who still beats."""
        awaited = [late.source] if late.source is not None else list(group.ranks)
        awaited = [rank for rank in awaited if rank != self._rank]
        try:
            before = self._read(awaited)
            for _ in range(_BEATS_OF_SILENCE):
                self._stopped.wait(BEAT_SECONDS)
                self._beat()
            after = self._read(awaited)
        except (RuntimeError, OSError):
            return "unknown: the job's store doesn't answer"
        names = []
        for rank in awaited:
            old, new = before[rank], after[rank]
            if new is None:
                names.append(f"rank {rank} (never heard of)")
            elif late.source is not None or new["reached"].get(late.axis, 0) < late.sequence:
                silent = "; no sign of life" if old == new else ""
                names.append(f"rank {rank} ({new['doing']}{silent})")
        return ", ".join(names) if names else "none: all have reached it"

    def _read(self, ranks: list[int]) -> dict[int, dict[str, Any] | None]:
        return {rank: self._exchange.find(f"beat/{rank}") for rank in ranks}

    def _timeout(self, late: Current, missing: str) -> CollectiveTimeout:
        waited = time.monotonic() - late.since
        return CollectiveTimeout(
            f"rank {self._rank}: {_words(late)} waited {waited:.0f} s "
            f"(limit {self._timeout_seconds:.0f} s); missing: {missing}"
        )

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=10)


def _words(c: Current) -> str:
    dtype = str(c.dtype).removeprefix("torch.")
    return f"{c.op} over {c.axis} of {list(c.shape)} {dtype} ({c.layer}, number {c.sequence})"
