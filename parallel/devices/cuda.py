"""A CUDA rank: one GPU, its allocator's statistics, events for timing, graphs, the compiler."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from parallel.devices.base import Device, Graph, MemoryInUse, MemoryStatistics, P, T, Timer
from parallel.devices.process import ResidentMemory, status_bytes
from parallel.errors import CaptureError

_ANCHOR_NS = 10_000_000_000
"""Age at which a new anchor is taken: events tell times from it as floats of milliseconds, whose
last digit is then a microsecond."""


@dataclass(frozen=True)
class Anchor:
    """An event, and the host's time when the device reached it."""

    event: torch.cuda.Event
    host_ns: int

    @classmethod
    def take(cls) -> Anchor:
        """Waits for the device."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        return cls(event, time.monotonic_ns())


class EventTimer(Timer):
    """Two events on the current stream; `seconds` waits for the second one."""

    immediate = False

    def __init__(self, anchor: Anchor) -> None:
        self._anchor = anchor
        self._begin = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def start(self) -> None:
        self._begin.record()

    def stop(self) -> None:
        self._end.record()

    def seconds(self) -> float:
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1e3

    def stretch_ns(self) -> tuple[int, int]:
        seconds = self.seconds()
        anchor = self._anchor
        begin = anchor.host_ns + round(anchor.event.elapsed_time(self._begin) * 1e6)
        return begin, begin + round(seconds * 1e9)

    def done(self) -> bool:
        return bool(self._end.query())


class CudaGraph(Graph):
    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph

    def replay(self) -> None:
        self._graph.replay()


def compiler_lacks() -> str:
    """Why nothing can be compiled for the GPU here, empty where it can. Triton needs a C compiler
    when it runs, for the launchers of its kernels (https://triton-lang.org, "Installation")."""
    if find_spec("triton") is None:
        return "the package triton is missing"
    if "CC" not in os.environ and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "triton needs a C compiler, and there is none"
    return ""


def wide_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[T, in] with [out, in] → [T, out] in float32, as the library sums it."""
    if x.dtype is torch.float32:
        return x.mm(weight.t())
    out: torch.Tensor = torch.ops.aten.mm.dtype(x, weight.t(), torch.float32)
    return out


class CudaDevice(Device):
    kind = "cuda"
    immediate = False

    def __init__(self, index: int, compiled: bool = True):
        self.torch_device = torch.device("cuda", index)
        self.uncompiled = compiler_lacks() if compiled else "engine.kernels=portable"
        self.capability = torch.cuda.get_device_capability(index)
        self._anchor: Anchor | None = None
        self._resident = ResidentMemory()
        self.name = torch.cuda.get_device_name(index)

    def activate(self) -> None:
        torch.cuda.set_device(self.torch_device)

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=dtype, pin_memory=True)

    def upload(self, host: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return out.copy_(host, non_blocking=True)

    def numbers(self, values: Sequence[int] | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """From pinned memory, which its allocator gives to nobody else before it has been read."""
        host = torch.as_tensor(values, dtype=dtype).pin_memory()
        return host.to(self.torch_device, non_blocking=True)

    def compile(self, run: Callable[P, T]) -> Callable[P, T]:
        """Compiled at the first call, for any number of rows at the second one with another number;
        warm-up makes those calls, and a graph is captured after its own first run."""
        return run if self.uncompiled else torch.compile(run)

    def wide_product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return wide_product(x, weight)

    def capture(self, run: Callable[[], None]) -> Graph | None:
        """All graphs share one pool: none runs beside another. Other threads (the watchdog's) go on
        asking events meanwhile, which only the thread-local mode allows
        (https://docs.pytorch.org/docs/stable/generated/torch.cuda.graph.html)."""
        pool, stream = self.kept("graphs", self._graph_pool)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                run()
        except RuntimeError as error:
            raise CaptureError(f"{self.name} can't capture this: {error}") from error
        return CudaGraph(graph)

    def _graph_pool(self) -> tuple[Any, torch.cuda.Stream]:
        return torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.torch_device)

    def timer(self) -> Timer:
        if self._anchor is None:
            self._anchor = Anchor.take()
        return EventTimer(self._anchor)

    def keep_time(self) -> None:
        """Once in ten seconds this waits for what is queued."""
        anchor = self._anchor
        if anchor is None or time.monotonic_ns() - anchor.host_ns > _ANCHOR_NS:
            self._anchor = Anchor.take()

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

    def memory_in_use(self) -> MemoryInUse:
        found = torch.cuda.memory_stats(self.torch_device)
        return MemoryInUse(
            self._resident.bytes,
            found["allocated_bytes.all.current"],
            found["reserved_bytes.all.current"],
        )

    def release_cached(self) -> None:
        torch.cuda.empty_cache()

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.torch_device)

    def context_bytes(self) -> int:
        """Whatever is taken on the device beside the allocator's pool, by other processes too."""
        free, total = torch.cuda.mem_get_info(self.torch_device)
        return total - free - torch.cuda.memory_reserved(self.torch_device)
