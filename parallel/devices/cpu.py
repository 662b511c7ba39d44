"""A CPU rank: some threads of the host and ordinary memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from parallel.devices.base import Device, MemoryStatistics, Timer
from parallel.devices.process import reset_peak_rss, status_bytes


class HostTimer(Timer):
    def __init__(self) -> None:
        self._began = self._seconds = 0.0

    def start(self) -> None:
        self._began = time.perf_counter()

    def stop(self) -> None:
        self._seconds = time.perf_counter() - self._began

    def seconds(self) -> float:
        return self._seconds


class CpuDevice(Device):
    kind = "cpu"
    name = "cpu"

    def __init__(self, threads: int | None = None):
        self.torch_device = torch.device("cpu")
        self.threads = threads

    def activate(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=dtype)

    def upload(self, host: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return out.copy_(host)

    def timer(self) -> Timer:
        return HostTimer()

    def synchronize(self) -> None:
        return

    def memory_statistics(self) -> MemoryStatistics:
        resident = status_bytes("VmRSS")
        peak = status_bytes("VmHWM")
        return MemoryStatistics(resident, peak, resident, peak)

    def reset_peak(self) -> None:
        reset_peak_rss()
