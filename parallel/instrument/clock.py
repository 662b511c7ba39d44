"""Steps by phase and shape: how many, how long. Shapes are kept so that a prediction can be made
for exactly what was run, after the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """One kind of step: `tokens` computed, `rows` sampled."""

    phase: str
    tokens: int
    rows: int


@dataclass
class Count:
    steps: int = 0
    contexts: int = 0
    seconds: float = 0.0


@dataclass
class StepClock:
    """`contexts` are the cached tokens that a step attends to, over its sequences."""

    now: Callable[[], float] = time.perf_counter
    counts: dict[Shape, Count] = field(default_factory=dict)
    _open: dict[int, tuple[Shape, int, float]] = field(default_factory=dict)

    def start(self, serial: int, shape: Shape, contexts: int, began: float | None = None) -> None:
        """`began` is when the step's scheduling did, as `now` said then."""
        self._open[serial] = (shape, contexts, self.now() if began is None else began)

    def stop(self, serial: int) -> None:
        shape, contexts, began = self._open.pop(serial)
        count = self.counts.setdefault(shape, Count())
        count.steps += 1
        count.contexts += contexts
        count.seconds += self.now() - began

    def phases(self) -> Iterator[tuple[str, list[tuple[Shape, Count]]]]:
        for phase in ("prefill", "decode"):
            yield phase, [(s, c) for s, c in self.counts.items() if s.phase == phase]
