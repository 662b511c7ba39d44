"""Spans of a step's parts on one rank, by the device's own time; nothing where nobody asked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from parallel.collectives.communicator import Communicator
from parallel.devices.base import Device, Timer
from parallel.instrument.ledger import Ledger
from parallel.instrument.spans import Kind
from parallel.kernels.cache import LayerCache
from parallel.kernels.step import StepInput
from parallel.models.transformer import Stream, Transformer, TransformerBlock

P = ParamSpec("P")
T = TypeVar("T")
_MOST_OWED = 4096


class Tracer:
    """Times what it is given to run. A step without communication isn't one of the run: while
    `axis` is muted nothing is kept."""

    def __init__(self, device: Device, ledger: Ledger, axis: Communicator):
        self._device, self._ledger, self._axis = device, ledger, axis
        self._on = ledger.spans.capacity > 0
        self._owed: deque[tuple[Timer, int, int]] = deque()

    def attach(self, model: Transformer) -> None:
        """From now on the model's layers are timed, each by its number."""
        if self._on:
            model.run_block = self._run_block

    def part(self, name: str, run: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._timed("step", name, "", run, *args, **kwargs)

    def awaited(self, name: str, run: Callable[[], T]) -> T:
        """What the host waits for, outside of steps."""
        began = time.monotonic_ns()
        out = run()
        if self._on:
            spans = self._ledger.spans
            place = spans.place(Kind("step", name, self._ledger.phase))
            spans.add(place, spans.step, began, time.monotonic_ns())
        return out

    def _run_block(
        self, block: TransformerBlock, stream: Stream, cache: LayerCache, step: StepInput
    ) -> None:
        self._timed("layer", "layer", str(block.layer), block, stream, cache, step)

    def _timed(
        self,
        track: str,
        name: str,
        layer: str,
        run: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        if not self._on or self._axis.muted:
            return run(*args, **kwargs)
        spans = self._ledger.spans
        place, step = spans.place(Kind(track, name, self._ledger.phase, layer)), spans.step
        timer = self._device.timer()
        timer.start()
        out = run(*args, **kwargs)
        timer.stop()
        self._owed.append((timer, place, step))
        if timer.immediate or len(self._owed) > _MOST_OWED:
            self._settle()
        return out

    def _settle(self) -> None:
        timer, place, step = self._owed.popleft()
        self._ledger.spans.add(place, step, *timer.stretch_ns())

    def resolve(self) -> None:
        """Reads the times that the device still owes."""
        while self._owed:
            self._settle()
