"""Collectives of one host's ranks through the native kernels (`devices/native/shared_memory.cpp`).

A rank that waits spins for a tenth of a millisecond and then sleeps: who keeps the others waiting
has its core.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from parallel.collectives.choice import NATIVE_SEGMENT_BYTES
from parallel.collectives.exchange import Exchange
from parallel.collectives.segments import map_segment
from parallel.collectives.transport import OnWire, Transport

_SUMMED = (torch.bfloat16, torch.float16, torch.float32)


class NativeSharedMemoryTransport(Transport):
    """What isn't contiguous or can't be summed in float goes to `general`, as do sends."""

    name = "shared_memory"
    buffer_bytes = NATIVE_SEGMENT_BYTES

    def __init__(
        self, general: Transport, reason: str, segment: torch.Tensor, index: int, ranks: int
    ):
        self.general, self.reason = general, reason
        self._segment, self._index, self._ranks = segment, index, ranks
        self._all_reduce = torch.ops.tessera_native.all_reduce_.default
        self._reduce_scatter = torch.ops.tessera_native.reduce_scatter.default
        self._all_gather = torch.ops.tessera_native.all_gather.default

    def all_reduce(self, x: torch.Tensor) -> None:
        if x.dtype in _SUMMED and x.is_contiguous():
            self._all_reduce(x, self._segment, self._index, self._ranks)
        else:
            self.general.all_reduce(x)

    def all_gather(self, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        rows = x.contiguous().view(-1, x.shape[-1])
        out: torch.Tensor = self._all_gather(rows, sizes, self._segment, self._index)
        return out.view(*x.shape[:-1], -1)

    def reduce_scatter(self, x: torch.Tensor, index: int, ranks: int) -> torch.Tensor:
        if x.dtype not in _SUMMED:
            return self.general.reduce_scatter(x, index, ranks)
        out: torch.Tensor = self._reduce_scatter(x.contiguous(), self._segment, index, ranks)
        return out

    def gather_rows(self, x: torch.Tensor, index: int, ranks: int) -> torch.Tensor:
        flat = x.contiguous().view(1, -1)
        out: torch.Tensor = self._all_gather(flat, [flat.shape[1]] * ranks, self._segment, index)
        return out.view(x.shape[0] * ranks, *x.shape[1:])

    def send(self, x: torch.Tensor, to: int) -> OnWire | None:
        return self.general.send(x, to)

    def recv(self, x: torch.Tensor, source: int) -> None:
        self.general.recv(x, source)

    def flush(self) -> None:
        self.general.flush()


def start_native_shared_memory(
    general: Transport, reason: str, exchange: Exchange, ranks: Sequence[int]
) -> NativeSharedMemoryTransport:
    """Maps the group's segment on all `ranks` together, each with the native kernels loaded.

    Raises `RunError` on each of them when one of them can't."""
    size = NATIVE_SEGMENT_BYTES * len(ranks)
    segment = map_segment(f"native_shared_memory/{ranks[0]}", size, exchange, ranks)
    index = ranks.index(exchange.rank)
    return NativeSharedMemoryTransport(general, reason, segment, index, len(ranks))
