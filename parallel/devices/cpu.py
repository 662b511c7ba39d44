"""A CPU rank: some threads of the host and ordinary memory."""

from __future__ import annotations

import mmap
import time
from collections.abc import Sequence
from math import prod

import torch

from parallel.devices import onednn
from parallel.devices.base import (
    Device,
    MemoryInUse,
    MemoryStatistics,
    PackedLinear,
    PackedTable,
    Timer,
)
from parallel.devices.huge_pages import HugePages, map_zeros
from parallel.devices.native.library import load
from parallel.devices.native.linear import NativeTable
from parallel.devices.process import ResidentMemory, status_bytes

_LAZY_BYTES = 1 << 20
_HUGE_BYTES = 32 << 20


class HostTimer(Timer):
    def __init__(self) -> None:
        self._begin_ns = self._end_ns = 0

    def start(self) -> None:
        self._begin_ns = time.monotonic_ns()

    def stop(self) -> None:
        self._end_ns = time.monotonic_ns()

    def seconds(self) -> float:
        return (self._end_ns - self._begin_ns) / 1e9

    def stretch_ns(self) -> tuple[int, int]:
        return self._begin_ns, self._end_ns

    def done(self) -> bool:
        return True


class CpuDevice(Device):
    kind = "cpu"
    name = "cpu"

    def __init__(self, threads: int | None = None, native: bool = False):
        """Raises `RunError` where `native` kernels are wanted and can't be built."""
        if native:
            load()
        self.native = native
        self.torch_device = torch.device("cpu")
        self.threads = threads
        self._weights = HugePages()
        self._resident = ResidentMemory()

    def activate(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def weight(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """In huge pages where it stays there: oneDNN's packed weights are copies."""
        if self.native:
            return self._weights.take(shape, dtype)
        return self.empty(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Large tensors are pages that the kernel zeroes when they are first touched: a cache costs
        what is used of it. Very large ones have huge pages, of which few are touched in vain."""
        size = prod(shape) * dtype.itemsize
        if size < _LAZY_BYTES:
            return torch.zeros(tuple(shape), dtype=dtype)
        if size < _HUGE_BYTES:
            return torch.frombuffer(mmap.mmap(-1, size), dtype=dtype).view(tuple(shape))
        return map_zeros(size).view(dtype).view(tuple(shape))

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return self.zeros(shape, dtype)

    def upload(self, host: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return out.copy_(host)

    def pack_linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> PackedLinear | None:
        return NativeTable.pack(weight, bias) if self.native else onednn.pack(weight, bias)

    def pack_table(self, weight: torch.Tensor) -> PackedTable | None:
        return NativeTable.pack(weight) if self.native else None

    def timer(self) -> Timer:
        return HostTimer()

    def synchronize(self) -> None:
        return

    def memory_statistics(self) -> MemoryStatistics:
        resident = status_bytes("VmRSS")
        peak = status_bytes("VmHWM")
        return MemoryStatistics(resident, peak, resident, peak)

    def memory_in_use(self) -> MemoryInUse:
        return MemoryInUse(self._resident.bytes)

    def reset_peak(self) -> None:
        return

    def context_bytes(self) -> int:
        return status_bytes("VmRSS")
