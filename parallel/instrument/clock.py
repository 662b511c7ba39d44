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
    """What a step's attention has to do: query-key `pairs`, and `cached` tokens that are read;
    `swapped` blocks go to host memory or come back before it."""

    pairs: int
    cached: int
    swapped: int = 0


@dataclass
class Count:
    """`ahead`: other steps that were under way when these began."""

    steps: int = 0
    pairs: int = 0
    cached: int = 0
    swapped: int = 0
    seconds: float = 0.0
    ahead: int = 0


@dataclass(frozen=True)
class Began:
    """A step as it began, with `ahead` others under way."""

    shape: Shape
    contexts: Contexts
    ahead: int


@dataclass
class StepClock:
    """`course` has every step in its order, where it is a list."""

    now: Callable[[], float] = time.perf_counter
    counts: dict[Shape, Count] = field(default_factory=dict)
    course: list[Began] | None = None
    _open: dict[int, tuple[Began, float]] = field(default_factory=dict)

    def start(
        self, serial: int, shape: Shape, contexts: Contexts, began: float | None = None
    ) -> None:
        """`began` is when the step's scheduling did, as `now` said then."""
        step = Began(shape, contexts, len(self._open))
        if self.course is not None:
            self.course.append(step)
        self._open[serial] = (step, self.now() if began is None else began)

    def stop(self, serial: int) -> None:
        step, began = self._open.pop(serial)
        count = self.counts.setdefault(step.shape, Count())
        count.steps += 1
        count.pairs += step.contexts.pairs
        count.cached += step.contexts.cached
        count.swapped += step.contexts.swapped
        count.ahead += step.ahead
        count.seconds += self.now() - began

    def phases(self) -> Iterator[tuple[str, list[tuple[Shape, Count]]]]:
        for phase in ("prefill", "decode"):
            yield phase, [(s, c) for s, c in self.counts.items() if s.phase == phase]
