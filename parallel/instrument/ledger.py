"""The ledger: every collective of a rank, as counters cheap enough to stay on.

Bytes are those that one rank sends, padding included: 2(n-1)/n·S for an all-reduce of S bytes,
(n-1) padded pieces for an all-gather, S for a send.
"""

from __future__ import annotations

from typing import Any

from parallel.instrument.spans import NO_PEER, Kind, Moment, Spans

Row = dict[str, Any]
Key = tuple[str, str, str, str, str]
"""Axis, operation, layer kind, phase, backend."""


class Counter:
    """`seconds` kept the rank from computing; `hidden_seconds` of the transfer went on beside its
    own work. `kind` is the place in the table of spans."""

    __slots__ = ("bytes", "calls", "hidden_seconds", "kind", "nanoseconds")

    def __init__(self, kind: int):
        self.kind = kind
        self.calls = self.bytes = self.nanoseconds = 0
        self.hidden_seconds = 0.0

    @property
    def seconds(self) -> float:
        return self.nanoseconds / 1e9


class Ledger:
    """Counters and spans of one rank. `phase` is that of the step under way."""

    def __init__(self, phase: str = "load", spans: Spans | None = None):
        self.phase = phase
        self.spans = Spans() if spans is None else spans
        self.counters: dict[Key, Counter] = {}

    def begin_step(self, phase: str) -> None:
        self.phase = phase
        self.spans.begin_step(phase)

    def counter(self, key: Key) -> Counter:
        found = self.counters.get(key)
        if found is None:
            axis, op, layer, phase, backend = key
            kind = self.spans.place(Kind("collective", op, phase, layer, axis, backend))
            found = self.counters[key] = Counter(kind)
        return found

    def count(self, key: Key, sent_bytes: int) -> Counter:
        """A call whose time isn't known, or not yet."""
        counter = self.counter(key)
        counter.calls += 1
        counter.bytes += sent_bytes
        return counter

    def count_again(self, key: Key, before: Counter) -> None:
        """The calls of a captured piece of work, with the seconds that they took `before`."""
        counter = self.counter(key)
        counter.calls += before.calls
        counter.bytes += before.bytes
        counter.nanoseconds += before.nanoseconds

    def add(
        self, key: Key, sent_bytes: int, begin_ns: int, end_ns: int, peer: int = NO_PEER
    ) -> None:
        """A call that has ended, and kept the rank waiting all the while."""
        counter = self.counters.get(key) or self.counter(key)
        counter.calls += 1
        counter.bytes += sent_bytes
        counter.nanoseconds += end_ns - begin_ns
        spans = self.spans
        if spans.wanted:
            spans.add_collective(counter.kind, spans.now, begin_ns, end_ns, sent_bytes, peer)

    def settle(
        self, key: Key, sent_bytes: int, begin_ns: int, end_ns: int, peer: int, when: Moment
    ) -> None:
        """The times of a call that was counted before; nothing if the counters have been reset
        since."""
        counter = self.counters.get(key)
        if counter is not None:
            counter.nanoseconds += end_ns - begin_ns
            self.spans.add_collective(counter.kind, when, begin_ns, end_ns, sent_bytes, peer)

    def reset(self) -> None:
        self.counters.clear()
        self.spans.reset()

    def rows(self, rank: int) -> list[Row]:
        """In the report's form; waiting and transfer are told apart when the stamps of all ranks
        are together (waits.py)."""
        return [
            {
                "rank": rank,
                "axis": axis,
                "op": op,
                "phase": phase,
                "layer": layer,
                "backend": backend,
                "calls": c.calls,
                "bytes": c.bytes,
                "seconds": c.seconds,
                "transfer_seconds": None,
                "wait_seconds": None,
                "sampled_calls": 0,
                "exposed_seconds": c.seconds,
                "hidden_seconds": c.hidden_seconds,
            }
            for (axis, op, layer, phase, backend), c in sorted(self.counters.items())
        ]
