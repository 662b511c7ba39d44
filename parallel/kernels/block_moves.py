"""Blocks of the KV cache copied, swapped out to host memory and back, for all layers of a rank.

Everything is given to the device in the order of its other work and waits for nothing, so that
batches in flight neither see a block too early nor lose one that they still read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from parallel.devices.base import Device
from parallel.kernels.cache import KVCache
from parallel.units import MIB

Pairs = Sequence[tuple[int, int]]

_PIECE_BYTES = 256 * MIB
"""The host pool is taken in pieces: torch rounds pinned memory up to a power of two."""


@dataclass(frozen=True)
class BlockMoves:
    """In this order: `out` (device block, host block), `copies` (from, to), `back` (device block,
    host block)."""

    out: Pairs = ()
    copies: Pairs = ()
    back: Pairs = ()

    def __bool__(self) -> bool:
        return bool(self.out or self.copies or self.back)


class BlockMover:
    """Moves blocks of `cache`; its pool in host memory has `host_blocks` of them, each the bytes of
    all layers side by side: one transfer, whatever the number of layers.

    `staging_bytes` are held on a device that isn't the host, when there is a pool."""

    def __init__(self, cache: KVCache, host_blocks: int, device: Device):
        tensors = [t for layer in cache.layers.values() for t in layer.tensors]
        # [blocks, bytes of a block] of each.
        self._rows = [t.flatten(1).view(torch.uint8) for t in tensors]
        self._sizes = [rows.shape[1] for rows in self._rows]
        self.block_bytes = sum(self._sizes)
        self._each = max(1, _PIECE_BYTES // self.block_bytes)
        self._pool = [
            device.host_buffer((min(self._each, host_blocks - i), self.block_bytes), torch.uint8)
            for i in range(0, host_blocks, self._each)
        ]
        self._staging = None
        if self._pool and device.torch_device.type != "cpu":
            self._staging = device.empty((self.block_bytes,), torch.uint8)

    @property
    def pool_bytes(self) -> int:
        return sum(piece.nbytes for piece in self._pool)

    @property
    def device_bytes(self) -> int:
        """Of the device's memory: the pool, where that is the host's, else the staging."""
        return self.pool_bytes if self._staging is None else self.staging_bytes

    @property
    def staging_bytes(self) -> int:
        return 0 if self._staging is None else self._staging.nbytes

    def run(self, moves: BlockMoves) -> None:
        for block, host in moves.out:
            self._swap_out(block, self._host(host))
        for source, target in moves.copies:
            torch._foreach_copy_(self._block(target), self._block(source))
        for block, host in moves.back:
            self._swap_in(block, self._host(host))

    def _block(self, number: int) -> list[torch.Tensor]:
        return [rows.select(0, number) for rows in self._rows]

    def _host(self, number: int) -> torch.Tensor:
        return self._pool[number // self._each].select(0, number % self._each)

    def _swap_out(self, block: int, host: torch.Tensor) -> None:
        there = host if self._staging is None else self._staging
        torch._foreach_copy_(there.split(self._sizes), self._block(block))
        if there is not host:
            host.copy_(there, non_blocking=True)

    def _swap_in(self, block: int, host: torch.Tensor) -> None:
        here = host if self._staging is None else self._staging.copy_(host, non_blocking=True)
        torch._foreach_copy_(self._block(block), here.split(self._sizes))
