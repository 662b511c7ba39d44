"""One mesh axis as its rank sees it: the collectives, counted in the ledger and watched.

Places (`index`, `to`, `source`) are within the group of the axis; `layer` names what the call is
for (embedding, attention, ffn, logits, stage).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch

from parallel.collectives import ops
from parallel.collectives.transport import OnWire, Transport
from parallel.devices.base import Device, Timer
from parallel.instrument.ledger import Key, Ledger
from parallel.instrument.spans import NO_PEER, Moment

_MOST_UNRESOLVED = 4096
_Begun = tuple[int, str, str, torch.Tensor, int, int]
"""Number, operation, layer kind, array, time in ns, peer: cheaper to make than a `Current`."""


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


class _Owed(NamedTuple):
    """A collective whose times the device hasn't told yet."""

    current: Current
    timer: Timer
    on_wire: OnWire | None
    key: Key
    bytes: int
    when: Moment
    peer: int


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
        self.sequence = 0
        self.muted = False
        self.backend = "none" if transport is None else transport.name
        self._transport = transport
        # One rank runs nothing on its axis.
        self._wire = cast(Transport, transport)
        self._immediate = device.immediate
        self._begun: _Begun | None = None
        self._owed: deque[_Owed] = deque()
        self._handle = ops.register(self)

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
            if ops.is_watched(x):
                ops.all_reduce_(x, self._handle, layer)
            else:
                self.run_all_reduce(x, layer)
        return x

    def all_gather(self, x: torch.Tensor, sizes: Sequence[int], layer: str) -> torch.Tensor:
        """[…, own size] → […, sum of sizes]: the pieces side by side, on every rank."""
        if self.size == 1:
            return x
        if self.muted:
            return x.new_zeros((*x.shape[:-1], sum(sizes)))
        out: torch.Tensor = ops.all_gather(x, list(sizes), self._handle, layer)
        return out

    def reduce_scatter(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        """[rows, …] → [rows / size, …]: this rank's rows of the sum, which may be written over `x`.
        The size divides the rows."""
        if self.size == 1:
            return x
        if self.muted:
            return x.narrow(0, 0, x.shape[0] // self.size)
        out: torch.Tensor = ops.reduce_scatter(x, self.size, self._handle, layer)
        return out

    def gather_rows(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        """[rows, …] → [rows · size, …]: the pieces one after the other, on every rank."""
        if self.size == 1:
            return x
        if self.muted:
            return x.new_zeros((x.shape[0] * self.size, *x.shape[1:]))
        out: torch.Tensor = ops.gather_rows(x, self.size, self._handle, layer)
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

    @contextmanager
    def counting_into(self, ledger: Ledger, timed: bool = False) -> Iterator[None]:
        """Inside, calls are counted in `ledger`. Unless `timed`, nothing is timed or watched: a
        graph that is captured only writes them down, and the device's events would be written down
        with them."""
        self.resolve()
        kept = self.ledger, self._immediate
        self.ledger, self._immediate = ledger, self._immediate or not timed
        try:
            yield
            self.resolve()
        finally:
            self.ledger, self._immediate = kept

    def run_captured(self, replay: Callable[[], None], x: torch.Tensor, counted: Ledger) -> None:
        """Runs a captured piece of a step that has the `counted` calls of this axis in it. They are
        counted once more, with the seconds that they took then: of a graph's parts the device tells
        no times. The watchdog sees the piece as one operation, with `x` as its array."""
        timer = self._begin("replay", x, "captured")
        begun = self._begun
        assert begun is not None
        replay()
        for (axis, op, layer, _, backend), counter in counted.counters.items():
            if axis == self.axis:
                key = (axis, op, layer, self.ledger.phase, backend)
                self.ledger.count_again(key, counter)
        self._begun = None
        if timer is None:
            return
        timer.stop()
        # A key that the ledger has no counter of: its times go nowhere.
        key = (self.axis, "replay", "captured", self.ledger.phase, self.backend)
        when, current = self.ledger.spans.now, self._current(begun)
        self._owed.append(_Owed(current, timer, None, key, 0, when, NO_PEER))
        self._shorten()

    def run_all_reduce(self, x: torch.Tensor, layer: str) -> None:
        timer = self._begin("all_reduce", x, layer)
        self._wire.all_reduce(x)
        self._end(timer, self._reduced_bytes(x))

    def run_all_gather(self, x: torch.Tensor, sizes: Sequence[int], layer: str) -> torch.Tensor:
        timer = self._begin("all_gather", x, layer)
        out = self._wire.all_gather(x, sizes)
        self._end(timer, self._gathered_bytes(x, sizes))
        return out

    def run_reduce_scatter(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        timer = self._begin("reduce_scatter", x, layer)
        out = self._wire.reduce_scatter(x, self.index, self.size)
        self._end(timer, self._reduced_bytes(x) // 2)
        return out

    def run_gather_rows(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        timer = self._begin("all_gather", x, layer)
        out = self._wire.gather_rows(x, self.index, self.size)
        self._end(timer, (self.size - 1) * x.nbytes)
        return out

    def run_send(self, x: torch.Tensor, to: int, layer: str) -> None:
        timer = self._begin("send", x, layer, self.ranks[to])
        on_wire = self._wire.send(x, to)
        self._end(timer, x.nbytes, on_wire)

    def run_recv(self, x: torch.Tensor, source: int, layer: str) -> None:
        timer = self._begin("recv", x, layer, self.ranks[source])
        self._wire.recv(x, source)
        self._end(timer, 0)

    def dry_run(self, op: str, x: torch.Tensor, layer: str, sizes: Sequence[int] = ()) -> None:
        """Counts a call on fake tensors, where that is the whole run. A compiler that traces real
        ones isn't counted: the calls that follow are."""
        if not self._wire.dry:
            return
        match op:
            case "all_reduce":
                sent = self._reduced_bytes(x)
            case "reduce_scatter":
                sent = self._reduced_bytes(x) // 2
            case "all_gather":
                sent = self._gathered_bytes(x, sizes)
            case _:
                sent = x.nbytes if op == "send" else 0
        self.ledger.count((self.axis, op, layer, self.ledger.phase, self.backend), sent)

    def _reduced_bytes(self, x: torch.Tensor) -> int:
        return 2 * (self.size - 1) * x.nbytes // self.size

    def _gathered_bytes(self, x: torch.Tensor, sizes: Sequence[int]) -> int:
        rows = x.numel() // x.shape[-1]
        return (self.size - 1) * rows * max(sizes) * x.element_size()

    def _begin(self, op: str, x: torch.Tensor, layer: str, peer: int = NO_PEER) -> Timer | None:
        """None where the host's clock does."""
        self.sequence += 1
        timer = None
        if not self._immediate:
            timer = self.device.timer()
            timer.start()
        self._begun = (self.sequence, op, layer, x, time.monotonic_ns(), peer)
        return timer

    def _end(self, timer: Timer | None, sent_bytes: int, on_wire: OnWire | None = None) -> None:
        begun = self._begun
        assert begun is not None
        _, op, layer, _, begin_ns, peer = begun
        ledger = self.ledger
        key = (self.axis, op, layer, ledger.phase, self.backend)
        if timer is None:
            ledger.add(key, sent_bytes, begin_ns, time.monotonic_ns(), peer)
            self._begun = None
            return
        timer.stop()
        ledger.count(key, sent_bytes)
        when, current = ledger.spans.now, self._current(begun)
        self._owed.append(_Owed(current, timer, on_wire, key, sent_bytes, when, peer))
        self._begun = None
        self._shorten()

    def _shorten(self) -> None:
        while len(self._owed) > _MOST_UNRESOLVED:
            self._resolve(self._owed.popleft())

    def _current(self, begun: _Begun) -> Current:
        number, op, layer, x, begin_ns, peer = begun
        source = peer if op == "recv" else None
        since = begin_ns / 1e9
        return Current(number, self.axis, op, layer, x.shape, x.dtype, since, source)

    def waiting(self) -> Current | None:
        """The oldest collective that hasn't ended, on the device too. For any thread."""
        for owed in self._owed.copy():
            if not owed.timer.done():
                return owed.current
        begun = self._begun
        return None if begun is None else self._current(begun)

    def resolve(self) -> None:
        """Reads the times that the device still owed the ledger."""
        while self._owed:
            self._resolve(self._owed.popleft())

    def _resolve(self, owed: _Owed) -> None:
        """What the timer saw kept the device's stream from its work: it is exposed. A transfer that
        took longer went on beside that work."""
        begin_ns, end_ns = owed.timer.stretch_ns()
        self.ledger.settle(owed.key, owed.bytes, begin_ns, end_ns, owed.peer, owed.when)
        if owed.on_wire is not None:
            hidden = owed.on_wire() - owed.timer.seconds()
            self.ledger.counters[owed.key].hidden_seconds += max(hidden, 0.0)

    def close(self) -> None:
        self.flush()
        ops.forget(self._handle)
