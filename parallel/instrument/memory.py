"""Memory by cause over time: an entry for each event of a rank's life, and for some of its steps.

All figures are bytes; None where the device doesn't tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

STEP = "step"
_MOST_STEPS = 64
_FIRST_STRIDE = 16


@dataclass(frozen=True)
class MemoryEntry:
    """`kv_used` of the `kv_cache` is in blocks that sequences have; `activations` is the peak of
    the warm-up on CPU, what lives beside weights and cache elsewhere; `communication` is in the
    backends' buffers; `runtime` was there before any tensor. `resident` is the process's,
    `allocated` and `reserved` the allocator's."""

    stamp_ns: int
    event: str
    weights: int
    kv_cache: int
    kv_used: int
    activations: int | None
    communication: int | None
    runtime: int | None
    resident: int
    allocated: int | None
    reserved: int | None


class MemoryTimeline:
    """Every event, and steps at a stride that doubles, with every other one dropped, when there
    are too many: bounded, and spread evenly over the run."""

    def __init__(self, most_steps: int = _MOST_STEPS, stride: int = _FIRST_STRIDE):
        self._most, self._stride = most_steps, stride
        self._events: list[MemoryEntry] = []
        self._steps: list[tuple[int, MemoryEntry]] = []

    def event(self, entry: MemoryEntry) -> None:
        self._events.append(entry)

    def wants(self, step: int) -> bool:
        return step % self._stride == 0

    def step(self, number: int, entry: MemoryEntry) -> None:
        """For a step that it wants."""
        self._steps.append((number, entry))
        if len(self._steps) > self._most:
            self._stride *= 2
            self._steps = [(n, e) for n, e in self._steps if n % self._stride == 0]

    def restart(self) -> None:
        """Forgets the steps."""
        self._steps = []

    @property
    def entries(self) -> list[MemoryEntry]:
        """In the order of time."""
        found = [*self._events, *(entry for _, entry in self._steps)]
        return sorted(found, key=lambda e: e.stamp_ns)

    def rows(self, rank: int, seconds_of: Callable[[int], float]) -> list[dict[str, Any]]:
        """In the report's form; `seconds_of` says how far into the job a stamp was."""
        rows = []
        for entry in self.entries:
            fields = asdict(entry)
            seconds = seconds_of(fields.pop("stamp_ns"))
            rows.append({"rank": rank, "seconds": seconds, **fields})
        return rows
