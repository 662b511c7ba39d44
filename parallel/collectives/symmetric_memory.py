"""All-reduces over memory that every GPU of a group has mapped (PyTorch's symmetric memory).

In one shot each rank reads all parts; in two it sums a piece, and then the pieces are read. Where
the switch can sum (NVLink SHARP), multimem takes the place of the second.

Other operations, and what the buffer can't hold, stay with NCCL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _symmetric_memory

from parallel.collectives.exchange import Exchange
from parallel.collectives.transport import OnWire, Transport
from parallel.devices.base import Device
from parallel.planner.memory import SYMMETRIC_BYTES
from parallel.units import KIB

ONE_SHOT_BYTES = 256 * KIB
"""Every rank reads (t-1) whole arrays in one shot, 2(t-1)/t of one in two, with one more barrier:
PyTorch's and vLLM's thresholds for eight ranks lie at 128 and 256 KiB."""
_ALIGNMENT_BYTES = 16
_TYPES = (torch.bfloat16, torch.float32)


class SymmetricMemoryTransport(Transport):
    """`buffer` is this rank's part of the symmetric memory, in bytes, of the group `group_name`;
    `multicast`: the switch can sum it. `operators` are torch.ops.symm_mem."""

    name = "symmetric_memory"

    def __init__(
        self,
        general: Transport,
        reason: str,
        buffer: torch.Tensor,
        group_name: str,
        multicast: bool,
        operators: Any = torch.ops.symm_mem,
    ):
        self.general, self.reason, self.buffer = general, reason, buffer
        self._group_name, self._multicast = group_name, multicast
        self._operators = operators

    def all_reduce(self, x: torch.Tensor) -> None:
        if not self._fits(x):
            self.general.all_reduce(x)
            return
        shared = self.buffer[: x.nbytes].view(x.dtype).view(x.shape)
        # Each operator ends with a barrier: no peer reads the buffer when it is written again.
        shared.copy_(x)
        operators, group = self._operators, self._group_name
        if x.nbytes <= ONE_SHOT_BYTES:
            operators.one_shot_all_reduce_out(shared, "sum", group, x)
            return
        if self._multicast:
            operators.multimem_all_reduce_(shared, "sum", group)
        else:
            operators.two_shot_all_reduce_(shared, "sum", group)
        x.copy_(shared)

    def _fits(self, x: torch.Tensor) -> bool:
        return (
            x.dtype in _TYPES
            and x.is_contiguous()
            and 0 < x.nbytes <= self.buffer.nbytes
            and x.nbytes % _ALIGNMENT_BYTES == 0
            and x.data_ptr() % _ALIGNMENT_BYTES == 0
        )

    def all_gather(self, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        return self.general.all_gather(x, sizes)

    def reduce_scatter(self, x: torch.Tensor, index: int, ranks: int) -> torch.Tensor:
        return self.general.reduce_scatter(x, index, ranks)

    def gather_rows(self, x: torch.Tensor, index: int, ranks: int) -> torch.Tensor:
        return self.general.gather_rows(x, index, ranks)

    def send(self, x: torch.Tensor, to: int) -> OnWire | None:
        return self.general.send(x, to)

    def recv(self, x: torch.Tensor, source: int) -> None:
        self.general.recv(x, source)

    def flush(self) -> None:
        self.general.flush()


def obstacle(facts: Sequence[Sequence[Any]]) -> str:
    """Why a group can't share memory; empty when it can. `facts`: of each rank its host, its GPU's
    number and the numbers of those that it can read."""
    hosts = {host for host, _, _ in facts}
    if len(hosts) > 1:
        return f"its ranks are on {len(hosts)} hosts"
    for _, gpu, readable in facts:
        missing = [other for _, other, _ in facts if other != gpu and other not in readable]
        if missing:
            return f"GPU {gpu} can't read the memory of GPU {missing[0]}"
    return ""


def start_symmetric_memory(
    general: Transport,
    group: dist.ProcessGroup,
    exchange: Exchange,
    ranks: Sequence[int],
    device: Device,
    host: str,
) -> Transport:
    """On all `ranks` of the group together: `general` where one of them can't, with the reason."""
    key, gpu = f"symmetric_memory/{ranks[0]}", device.torch_device.index or 0
    readable = [n for n in range(torch.cuda.device_count()) if _can_read(gpu, n)]
    problem = obstacle(exchange.collect(f"{key}/facts", [host, gpu, readable], ranks))
    if not problem:
        found = _map(group, device)
        said = exchange.collect(f"{key}/mapped", found if isinstance(found, str) else "", ranks)
        problem = next((p for p in said if p), "")
        if not problem and not isinstance(found, str):
            buffer, multicast = found
            reason = "asked for, and every GPU reads every other"
            name = str(group.group_name)
            return SymmetricMemoryTransport(general, reason, buffer, name, multicast)
    general.reason = f"no symmetric memory: {problem}"
    return general


def _can_read(gpu: int, other: int) -> bool:
    return gpu != other and torch.cuda.can_device_access_peer(gpu, other)


def _map(group: dist.ProcessGroup, device: Device) -> tuple[torch.Tensor, bool] | str:
    """The buffer and whether the switch can sum it, or what went wrong."""
    try:
        buffer = _symmetric_memory.empty(
            SYMMETRIC_BYTES, dtype=torch.uint8, device=device.torch_device
        )
        handle = _symmetric_memory.rendezvous(buffer, group)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return buffer, handle.multicast_ptr != 0
