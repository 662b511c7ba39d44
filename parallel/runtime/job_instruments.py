"""The instruments of one rank, made together: ledger, step clock, memory log, what they cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from parallel.collectives.clocks import RankClock
from parallel.collectives.overhead import record_seconds
from parallel.devices.base import Device
from parallel.instrument.clock import Contexts, Shape, StepClock
from parallel.instrument.cost import InstrumentCost, RecordCosts, seconds_of
from parallel.instrument.ledger import Ledger
from parallel.instrument.spans import Record
from parallel.instrument.stamps import to_wire
from parallel.runtime.memory_log import MemoryLog
from parallel.runtime.worker import Worker

Json = dict[str, Any]
_OTHER_SPANS = 32


def ring_capacity(layers: int, steps: int) -> int:
    """Records that `steps` steps of a stage make: a span and some collectives for each layer."""
    return steps * (4 * layers + _OTHER_SPANS)


class Instruments:
    """`clock` is the clock of all ranks; `worker` is the one that is looked at."""

    def __init__(self, worker: Worker, device: Device, clock: RankClock, runtime_bytes: int | None):
        self._worker, self._device, self._clock = worker, device, clock
        self.ledger: Ledger = worker.ledger
        self.memory = MemoryLog(worker, device, runtime_bytes)
        self._costs: RecordCosts | None = None

    def warmed_up(self, activations: int) -> None:
        """The run begins: what was counted so far is forgotten, layers are watched from here on."""
        self.restart()
        self.memory.activations = activations
        self.memory.event("warmed up")
        self._worker.after_step = self.memory.after_step
        self._worker.tracer.attach(self._worker.model)
        self._costs = self._measure_costs()

    def restart(self) -> None:
        """Forgets all steps so far."""
        self._resolve()
        self.ledger.reset()
        self.memory.restart()

    def _resolve(self) -> None:
        for communicator in self._worker.mesh.communicators.values():
            communicator.resolve()
        self._worker.tracer.resolve()

    def report(self) -> Json:
        """This rank's part of a report, beside its memory."""
        self._resolve()
        rank = self._worker.rank
        return {
            "collectives": self.ledger.rows(rank),
            "stamps": self._stamps(self.ledger.spans.sampled),
            "memory_timeline": self.memory.timeline.rows(rank, self._seconds),
            "instrument": self._cost(),
        }

    def trace(self, steps: int) -> Json:
        """The last steps and what memory held, times on the clock of all."""
        self._resolve()
        spans = self.ledger.spans
        entries = self.memory.timeline.rows(self._worker.rank, self._seconds)
        stamps = [self._clock.map.common_ns(e.stamp_ns) for e in self.memory.timeline.entries]
        memory = [{**row, "stamp_ns": at} for row, at in zip(entries, stamps, strict=True)]
        return {"stamps": self._stamps(spans.last(steps)), "memory": memory}

    def _stamps(self, records: Iterable[Record]) -> Json:
        kinds, common = self.ledger.spans.kinds, self._clock.map.common_ns
        return to_wire(self._worker.rank, kinds, records, common)

    def _seconds(self, stamp_ns: int) -> float:
        return (self._clock.map.common_ns(stamp_ns) - self._clock.origin_ns) / 1e9

    def _cost(self) -> Json | None:
        if self._costs is None:
            return None
        calls = sum(counter.calls for counter in self.ledger.counters.values())
        spans = max(self.ledger.spans.count - calls, 0)
        steps = self.ledger.spans.step
        return InstrumentCost(steps, calls, spans, self.memory.count, self._costs).to_json()

    def _measure_costs(self) -> RecordCosts:
        """On this machine, now: instruments like those of the run, with nothing to look at."""
        ring = self.ledger.spans.capacity
        ledger, clock = Ledger(), StepClock()
        shape, contexts = Shape("decode", 1, 1, 1), Contexts(1, 1)

        def step() -> None:
            clock.start(0, shape, contexts)
            self._device.keep_time()
            ledger.begin_step("decode")
            self._worker.tracer.part("", _nothing)
            clock.stop(0)

        collective = record_seconds(self._device, ring)
        memory = seconds_of(lambda: self.memory.entry(""))
        costs = RecordCosts(collective, seconds_of(step), memory)
        self.ledger.spans.reset()
        return costs


def _nothing() -> None:
    return
