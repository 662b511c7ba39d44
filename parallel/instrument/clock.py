"""Steps by phase and shape: how many, how long. Shapes are kept so that a prediction can be made
for exactly what was run, after the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """One kind of step: `tokens` computed for `sequences`, `chunks` of prompts among them; `rows`
    sampled."""

    phase: str
    tokens: int
    sequences: int
    rows: int
    chunks: int = 0


@dataclass(frozen=True)
class Contexts:
    """What a step's attention has to do: query-key `pairs`, and `cached` tokens that are read."""

    pairs: int
    cached: int


@dataclass
class Count:
    steps: int = 0
    pairs: int = 0
    cached: int = 0
    seconds: float = 0.0


@dataclass
class StepClock:
    now: Callable[[], float] = time.perf_counter
    counts: dict[Shape, Count] = field(default_factory=dict)
    _open: dict[int, tuple[Shape, Contexts, float]] = field(default_factory=dict)

    def start(
        self, serial: int, shape: Shape, contexts: Contexts, began: float | None = None
    ) -> None:
        """`began` is when the step's scheduling did, as `now` said then."""
        self._open[serial] = (shape, contexts, self.now() if began is None else began)

    def stop(self, serial: int) -> None:
        shape, contexts, began = self._open.pop(serial)
        count = self.counts.setdefault(shape, Count())
        count.steps += 1
        count.pairs += contexts.pairs
        count.cached += contexts.cached
        count.seconds += self.now() - began

    def phases(self) -> Iterator[tuple[str, list[tuple[Shape, Count]]]]:
        for phase in ("prefill", "decode"):
            yield phase, [(s, c) for s, c in self.counts.items() if s.phase == phase]
