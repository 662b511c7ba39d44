"""One mesh axis as its rank sees it: the collectives, counted in the ledger and watched.

Places (`index`, `to`, `source`) are within the group of the axis; `layer` names what the call is
for (embedding, attention, ffn, logits, stage).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from parallel.collectives import ops
from parallel.collectives.transport import Transport
from parallel.devices.base import Device, Timer
from parallel.instrument.ledger import Counter, Ledger

_MOST_UNRESOLVED = 4096


@dataclass(frozen=True)
class Current:
    """The collective that a rank is in: what the watchdog reports."""

    sequence: int
    axis: str
    op: str
    layer: str
    shape: tuple[int, ...]
    dtype: str
    since: float


class Communicator:
    """An axis of size 1 has no transport: its calls are identities and aren't counted."""

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
        self._transport = transport
        self._unresolved: deque[tuple[Counter, Timer]] = deque()
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
        if self.size > 1:
            torch.ops.tessera.all_reduce_(x, self._handle, layer)
        return x

    def all_gather(self, x: torch.Tensor, sizes: Sequence[int], layer: str) -> torch.Tensor:
        """[…, own size] → […, sum of sizes]: the pieces side by side, on every rank."""
        if self.size == 1:
            return x
        out: torch.Tensor = torch.ops.tessera.all_gather(x, list(sizes), self._handle, layer)
        return out

    def send(self, x: torch.Tensor, to: int, layer: str) -> None:
        """Starts sending; `x` must not be written until it has left."""
        torch.ops.tessera.send(x, to, self._handle, layer)

    def recv(self, x: torch.Tensor, source: int, layer: str) -> torch.Tensor:
        """Fills `x` from a peer, and returns it."""
        torch.ops.tessera.recv_(x, source, self._handle, layer)
        return x

    def flush(self) -> None:
        """Waits until everything sent has left."""
        if self._transport is not None:
            self._transport.flush()

    def run_all_reduce(self, x: torch.Tensor, layer: str) -> None:
        timer = self._begin("all_reduce", x, layer)
        self._wire.all_reduce(x)
        self._end(timer, self.count("all_reduce", x, layer))

    def run_all_gather(self, x: torch.Tensor, sizes: Sequence[int], layer: str) -> torch.Tensor:
        timer = self._begin("all_gather", x, layer)
        out = self._wire.all_gather(x, sizes)
        self._end(timer, self.count_gather(x, sizes, layer))
        return out

    def run_send(self, x: torch.Tensor, to: int, layer: str) -> None:
        timer = self._begin("send", x, layer)
        self._wire.send(x, to)
        self._end(timer, self.count("send", x, layer))

    def run_recv(self, x: torch.Tensor, source: int, layer: str) -> None:
        timer = self._begin("recv", x, layer)
        self._wire.recv(x, source)
        self._end(timer, self.count("recv", x, layer))

    def count(self, op: str, x: torch.Tensor, layer: str) -> Counter:
        """Enters a call in the ledger; a receiver sends nothing."""
        size = x.numel() * x.element_size()
        share = {"all_reduce": 2 * (self.size - 1) * size // self.size, "send": size}
        return self.ledger.add(self.axis, op, layer, self.backend, share.get(op, 0), 0.0)

    def count_gather(self, x: torch.Tensor, sizes: Sequence[int], layer: str) -> Counter:
        rows = x.numel() // x.shape[-1]
        piece = rows * max(sizes) * x.element_size()
        sent = (self.size - 1) * piece
        return self.ledger.add(self.axis, "all_gather", layer, self.backend, sent, 0.0)

    @property
    def _wire(self) -> Transport:
        assert self._transport is not None, f"axis {self.axis} has one rank and no transport"
        return self._transport

    def _begin(self, op: str, x: torch.Tensor, layer: str) -> Timer:
        self.sequence += 1
        self.current = Current(
            self.sequence, self.axis, op, layer, tuple(x.shape), str(x.dtype), time.monotonic()
        )
        timer = self.device.timer()
        timer.start()
        return timer

    def _end(self, timer: Timer, counter: Counter) -> None:
        timer.stop()
        self.current = None
        if timer.immediate:
            counter.seconds += timer.seconds()
            return
        self._unresolved.append((counter, timer))
        while len(self._unresolved) > _MOST_UNRESOLVED:
            self._resolve_oldest()

    def resolve(self) -> None:
        """Reads the times that the device still owed the ledger."""
        while self._unresolved:
            self._resolve_oldest()

    def _resolve_oldest(self) -> None:
        counter, timer = self._unresolved.popleft()
        counter.seconds += timer.seconds()

    def close(self) -> None:
        self.flush()
        ops.forget(self._handle)
