"""Which device a rank gets."""

from __future__ import annotations

import torch

from parallel.devices.base import Device
from parallel.devices.cpu import CpuDevice
from parallel.devices.cuda import CudaDevice
from parallel.errors import HardwareError


def select_device(
    kind: str,
    local_rank: int,
    threads: int | None = None,
    native: bool = False,
    compiled: bool = True,
) -> Device:
    """`kind` is 'auto' (CUDA where there is any), 'cpu' or 'cuda'; the GPU is the local rank's.
    `native`: a CPU's products, norms and attention are those of `devices/native`; `compiled`: what
    lies between a GPU's products is compiled where that can be.

    Raises `HardwareError` when this rank has no GPU of its own."""
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return CpuDevice(threads, native)
    if not torch.cuda.is_available():
        raise HardwareError(
            "device=cuda, but torch sees no GPU here; install a CUDA build of torch and check "
            "nvidia-smi, or say device=cpu"
        )
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise HardwareError(
            f"local rank {local_rank} has no GPU: this host has {count}; start at most {count} "
            "ranks per host, or say device=cpu"
        )
    return CudaDevice(local_rank, compiled)
