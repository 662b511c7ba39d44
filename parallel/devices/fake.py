"""A device of the dry run: tensors on 'cuda' under `FakeTensorMode`, with no GPU and no bytes.

Factories, products, attention and collectives work there with a CPU-only torch; streams, events
and copies from the host don't, so they do nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parallel.devices.base import Device, MemoryInUse, MemoryStatistics, Timer
from parallel.devices.cpu import HostTimer
from parallel.devices.cuda import wide_product


class FakeCudaDevice(Device):
    kind = "cuda"
    name = "fake cuda"

    def __init__(self, index: int = 0, capability: tuple[int, int] | None = None):
        """With a `capability` it is taken for a GPU that has kernels of its own."""
        self.torch_device = torch.device("cuda", index)
        self.capability = capability

    def activate(self) -> None:
        return

    def host_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=dtype)

    def array(self, host: torch.Tensor) -> NDArray[Any]:
        """An array of its own: a fake tensor has no memory."""
        return np.zeros(host.shape, dtype=np.int64)

    def upload(self, host: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return out

    def numbers(self, values: Sequence[int] | torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(len(values), dtype=dtype, device=self.torch_device)

    def wide_product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return wide_product(x, weight)

    def timer(self) -> Timer:
        return HostTimer()

    def synchronize(self) -> None:
        return

    def memory_statistics(self) -> MemoryStatistics:
        return MemoryStatistics(0, 0, 0, 0)

    def memory_in_use(self) -> MemoryInUse:
        return MemoryInUse(0)

    def reset_peak(self) -> None:
        return

    def context_bytes(self) -> int:
        return 0
