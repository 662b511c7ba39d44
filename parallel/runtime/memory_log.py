"""What a rank holds, by cause, at moments of its life."""

from __future__ import annotations

import time

import numpy as np

from parallel.devices.base import Device
from parallel.instrument.memory import STEP, MemoryEntry, MemoryTimeline
from parallel.runtime.worker import Worker


class MemoryLog:
    """`activations` is the peak of the warm-up, once there was one; `runtime` what the process
    held before any tensor. `count` steps have been entered."""

    def __init__(self, worker: Worker, device: Device, runtime: int | None):
        self._worker, self._device, self._runtime = worker, device, runtime
        self.activations: int | None = None
        self.timeline = MemoryTimeline()
        self.count = 0
        self._held = (0, 0)

    def event(self, name: str) -> None:
        """Weights and cache change between events alone."""
        self._held = (self._worker.weights.bytes, self._worker.cache.bytes)
        self.timeline.event(self.entry(name))

    def after_step(self, number: int) -> None:
        if self.timeline.wants(number):
            self.timeline.step(number, self.entry(STEP))
            self.count += 1

    def restart(self) -> None:
        """Forgets the steps."""
        self.timeline.restart()
        self.count = 0

    def entry(self, event: str) -> MemoryEntry:
        worker, now = self._worker, self._device.memory_in_use()
        weights, cache = self._held
        tables = [s.table.blocks for s in worker.sequences.states.values()]
        # Shared blocks count once.
        blocks = len(np.unique(np.concatenate(tables))) if tables else 0
        live = None if now.allocated_bytes is None else now.allocated_bytes - weights - cache
        return MemoryEntry(
            stamp_ns=time.monotonic_ns(),
            event=event,
            weights=weights,
            kv_cache=cache,
            kv_used=cache * blocks // worker.cache.blocks,
            activations=self.activations if live is None else live,
            communication=worker.mesh.buffer_bytes,
            runtime=self._runtime,
            resident=now.resident_bytes,
            allocated=now.allocated_bytes,
            reserved=now.reserved_bytes,
        )
