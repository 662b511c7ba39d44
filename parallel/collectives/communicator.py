"""One mesh axis as its rank sees it: the collectives, counted in the ledger and watched.

Places (`index`, `to`, `source`) are within the group of the axis; `layer` names what the call is
for (embedding, attention, ffn, logits, stage).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch

from parallel.collectives import ops
from parallel.collectives.transport import Transport
from parallel.devices.base import Device, Timer
from parallel.instrument.ledger import Counter, Ledger

_MOST_UNRESOLVED = 4096


class Current(NamedTuple):
    """A collective that hasn't ended: what the watchdog reports. `source` is the rank that a
    receiver waits for; everything else waits for the whole group."""

    sequence: int
    axis: str
    op: str
    layer: str
    shape: torch.Size
    dtype: torch.dtype
    since: float
    source: int | None


class Communicator:
    """An axis of size 1 has no transport: its calls are identities and aren't counted.

    While `muted`, nothing is sent, awaited or counted: results have the right shapes and legal
    values, and mean nothing. A step's own work is timed so."""

    def __init__(
        self,
        axis: str,
        ranks: Sequence[int],
        index: int,
        transport: Transport | None,
        ledger: Ledger,
        device: Device,
    ):
        self.axis, self.ranks, self.index = axis, tuple(ranks), index
        self.size = len(self.ranks)
        self.ledger, self.device = ledger, device
        self.current: Current | None = None
        self.sequence = 0
        self.muted = False
        self._transport = transport
        self._unresolved: deque[tuple[Counter, Timer, Current]] = deque()
        self._handle = ops.register(self)

    @property
    def backend(self) -> str:
        return "none" if self._transport is None else self._transport.name

    @property
    def reason(self) -> str:
        return "one rank" if self._transport is None else self._transport.reason

    @property
    def buffer_bytes(self) -> int | None:
        """Bytes that the backend holds for this axis, where it says."""
        return 0 if self._transport is None else self._transport.buffer_bytes

    def all_reduce(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        """Sums `x` over the axis in place, and returns it."""
        if self.size > 1 and not self.muted:
            ops.all_reduce_(x, self._handle, layer)
        return x

    def all_gather(self, x: torch.Tensor, sizes: Sequence[int], layer: str) -> torch.Tensor:
        """[…, own size] → […, sum of sizes]: the pieces side by side, on every rank."""
        if self.size == 1:
            return x
        if self.muted:
            return x.new_zeros((*x.shape[:-1], sum(sizes)))
        out: torch.Tensor = ops.all_gather(x, list(sizes), self._handle, layer)
        return out

    def send(self, x: torch.Tensor, to: int, layer: str) -> None:
        """Starts sending; `x` must not be written until it has left."""
        if not self.muted:
            ops.send(x, to, self._handle, layer)

    def recv(self, x: torch.Tensor, source: int, layer: str) -> torch.Tensor:
        """Fills `x` from a peer, and returns it."""
        if self.muted:
            return x.fill_(1)
        ops.recv_(x, source, self._handle, layer)
        return x

    def flush(self) -> None:
        """Waits until everything sent has left."""
        if self._transport is not None:
            self._transport.flush()

    def run_all_reduce(self, x: torch.Tensor, layer: str) -> None:
        timer = self._begin("all_reduce", x, layer)
        self._wire.all_reduce(x)
        self._end(timer, self._count("all_reduce", layer, self._reduced_bytes(x)))

    def run_all_gather(self, x: torch.Tensor, sizes: Sequence[int], layer: str) -> torch.Tensor:
        timer = self._begin("all_gather", x, layer)
        out = self._wire.all_gather(x, sizes)
        self._end(timer, self._count("all_gather", layer, self._gathered_bytes(x, sizes)))
        return out

    def run_send(self, x: torch.Tensor, to: int, layer: str) -> None:
        timer = self._begin("send", x, layer)
        self._wire.send(x, to)
        self._end(timer, self._count("send", layer, x.nbytes))

    def run_recv(self, x: torch.Tensor, source: int, layer: str) -> None:
        timer = self._begin("recv", x, layer, self.ranks[source])
        self._wire.recv(x, source)
        self._end(timer, self._count("recv", layer, 0))

    def dry_run(self, op: str, x: torch.Tensor, layer: str, sizes: Sequence[int] = ()) -> None:
        """Counts a call on fake tensors, where that is the whole run. A compiler that traces real
        ones isn't counted: the calls that follow are."""
        if not self._wire.dry:
            return
        match op:
            case "all_reduce":
                sent = self._reduced_bytes(x)
            case "all_gather":
                sent = self._gathered_bytes(x, sizes)
            case _:
                sent = x.nbytes if op == "send" else 0
        self._count(op, layer, sent)

    def _reduced_bytes(self, x: torch.Tensor) -> int:
        return 2 * (self.size - 1) * x.nbytes // self.size

    def _gathered_bytes(self, x: torch.Tensor, sizes: Sequence[int]) -> int:
        rows = x.numel() // x.shape[-1]
        return (self.size - 1) * rows * max(sizes) * x.element_size()

    def _count(self, op: str, layer: str, sent_bytes: int) -> Counter:
        return self.ledger.add(self.axis, op, layer, self.backend, sent_bytes, 0.0)

    @property
    def _wire(self) -> Transport:
        assert self._transport is not None, f"axis {self.axis} has one rank and no transport"
        return self._transport

    def _begin(self, op: str, x: torch.Tensor, layer: str, source: int | None = None) -> Timer:
        self.sequence += 1
        self.current = Current(
            self.sequence, self.axis, op, layer, x.shape, x.dtype, time.monotonic(), source
        )
        timer = self.device.timer()
        timer.start()
        return timer

    def _end(self, timer: Timer, counter: Counter) -> None:
        timer.stop()
        current, self.current = self.current, None
        if timer.immediate:
            counter.seconds += timer.seconds()
            return
        assert current is not None
        self._unresolved.append((counter, timer, current))
        while len(self._unresolved) > _MOST_UNRESOLVED:
            self._resolve_oldest()

    def waiting(self) -> Current | None:
        """The oldest collective that hasn't ended, on the device too. For any thread."""
        for _, timer, current in self._unresolved.copy():
            if not timer.done():
                return current
        return self.current

    def resolve(self) -> None:
        """Reads the times that the device still owed the ledger."""
        while self._unresolved:
            self._resolve_oldest()

    def _resolve_oldest(self) -> None:
        counter, timer, _ = self._unresolved.popleft()
        counter.seconds += timer.seconds()

    def close(self) -> None:
        self.flush()
        ops.forget(self._handle)
