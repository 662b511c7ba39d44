"""A CUDA rank: one GPU, its allocator's statistics, events for timing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from parallel.devices.base import Device, MemoryStatistics, Timer
from parallel.devices.process import status_bytes


class EventTimer(Timer):
    """Two events on the current stream; `seconds` waits for the second one."""

    immediate = False

    def __init__(self) -> None:
        self._begin = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def start(self) -> None:
        self._begin.record()

    def stop(self) -> None:
        self._end.record()

    def seconds(self) -> float:
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1e3

    def done(self) -> bool:
        return bool(self._end.query())


class CudaDevice(Device):
    kind = "cuda"

    def __init__(self, index: int):
        self.torch_device = torch.device("cuda", index)
        self.name = torch.cuda.get_device_name(index)

    def activate(self) -> None:
        torch.cuda.set_device(self.torch_device)

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=dtype, pin_memory=True)

    def upload(self, host: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return out.copy_(host, non_blocking=True)

    def timer(self) -> Timer:
        return EventTimer()

    def mark(self) -> Callable[[], None]:
        event = torch.cuda.Event()
        event.record()
        return event.synchronize

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def memory_statistics(self) -> MemoryStatistics:
        return MemoryStatistics(
            torch.cuda.memory_allocated(self.torch_device),
            torch.cuda.max_memory_allocated(self.torch_device),
            torch.cuda.memory_reserved(self.torch_device),
            status_bytes("VmHWM"),
        )

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.torch_device)

    def context_bytes(self) -> int:
        """Whatever is taken on the device beside the allocator's pool, by other processes too."""
        free, total = torch.cuda.mem_get_info(self.torch_device)
        return total - free - torch.cuda.memory_reserved(self.torch_device)
