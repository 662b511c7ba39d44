"""The ledger: every collective of a rank, as counters cheap enough to stay on.

Bytes are those that one rank sends, padding included: 2(n-1)/n·S for an all-reduce of S bytes,
(n-1) padded pieces for an all-gather, S for a send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]
_Key = tuple[str, str, str, str, str]


@dataclass
class Counter:
    calls: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass
class Ledger:
    """Counters by axis, operation, layer kind, phase and backend. `phase` is set by the engine."""

    phase: str = "load"
    counters: dict[_Key, Counter] = field(default_factory=dict)

    def add(
        self, axis: str, op: str, layer: str, backend: str, sent_bytes: int, seconds: float
    ) -> Counter:
        key = (axis, op, layer, self.phase, backend)
        counter = self.counters.get(key)
        if counter is None:
            counter = self.counters[key] = Counter()
        counter.calls += 1
        counter.bytes += sent_bytes
        counter.seconds += seconds
        return counter

    def reset(self) -> None:
        self.counters.clear()

    def rows(self, rank: int) -> list[Row]:
        """In the report's form; `wait_seconds` is known when all ranks' rows are together."""
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
                "wait_seconds": None,
            }
            for (axis, op, layer, phase, backend), c in sorted(self.counters.items())
        ]


def merge_waits(rows: Iterable[Row], group_of: Callable[[str, int], tuple[int, ...]]) -> list[Row]:
    """Fills `wait_seconds`: a rank's seconds less the least of its group for the same operation.

    The last to arrive waits least, so this is a lower bound of the waiting. It stays None where
    a rank of the group has no such row (the ends of a pipeline's sends)."""
    rows = list(rows)
    seconds: dict[object, dict[int, float]] = {}

    def key(row: Row) -> object:
        group = group_of(row["axis"], row["rank"])
        return (group, row["op"], row["phase"], row["layer"], row["backend"])

    for row in rows:
        seconds.setdefault(key(row), {})[row["rank"]] = row["seconds"]
    out = []
    for row in rows:
        group, found = group_of(row["axis"], row["rank"]), seconds[key(row)]
        whole = all(rank in found for rank in group)
        wait = row["seconds"] - min(found.values()) if whole else None
        out.append({**row, "wait_seconds": wait})
    return out
