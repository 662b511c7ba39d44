"""Collectives of one host's ranks through the native kernels (`devices/native/shared_memory.cpp`).

The group maps one file of /dev/shm, which is unlinked as soon as every rank has it. A rank that
waits spins for a tenth of a millisecond and then sleeps: who keeps the others waiting has its core.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import torch

from parallel.collectives.choice import NATIVE_SEGMENT_BYTES
from parallel.collectives.exchange import Exchange
from parallel.collectives.transport import OnWire, Transport
from parallel.errors import RunError

_SUMMED = (torch.bfloat16, torch.float16, torch.float32)
_FOLDER = Path("/dev/shm")


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
    key, index = f"native_shared_memory/{ranks[0]}", ranks.index(exchange.rank)
    if index == 0:
        exchange.put(f"{key}/name", f"tessera_{secrets.token_hex(8)}")
    path = _FOLDER / exchange.get(f"{key}/name")
    size = NATIVE_SEGMENT_BYTES * len(ranks)
    try:
        problem, segment = "", None
        if index == 0:
            problem, segment = _mapped(path, size, create=True)
            exchange.put(f"{key}/made", problem)
        else:
            problem = exchange.get(f"{key}/made")
            if not problem:
                problem, segment = _mapped(path, size, create=False)
        problem = next(filter(None, exchange.collect(f"{key}/mapped", problem, ranks)), "")
    finally:
        if index == 0:
            path.unlink(missing_ok=True)
    if segment is None or problem:
        raise RunError(f"the ranks' shared memory {path} can't be mapped: {problem}")
    return NativeSharedMemoryTransport(general, reason, segment, index, len(ranks))


def _mapped(path: Path, size: int, create: bool) -> tuple[str, torch.Tensor | None]:
    """What went wrong, or the bytes; a new file's are zero and really there."""
    flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
    try:
        file = os.open(path, flags, 0o600)
        try:
            if create:
                os.posix_fallocate(file, 0, size)
            return "", torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8)
        finally:
            os.close(file)
    except OSError as error:
        return str(error), None
