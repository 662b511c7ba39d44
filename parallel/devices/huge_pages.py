"""Memory for what every step reads, in huge pages where the system gives them.

A core reads twice as fast from pages of 2 MiB as from such of 4 KiB. Pages come when they are
touched, and are zeroed then.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod

import torch

from parallel.units import MIB

_PAGE_BYTES = 2 * MIB
_MAP_BYTES = 256 * MIB
_ALIGNMENT = 64
"""A cache line."""


class HugePages:
    """Hands out tensors that are kept for long, one after the other in large maps. A map is given
    back when the last of its tensors is gone."""

    def __init__(self) -> None:
        self._left = torch.empty(0, dtype=torch.uint8)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An unfilled tensor."""
        size = prod(shape) * dtype.itemsize
        needed = -(-size // _ALIGNMENT) * _ALIGNMENT
        if needed > self._left.numel():
            self._left = map_zeros(-(-max(needed, _MAP_BYTES) // _PAGE_BYTES) * _PAGE_BYTES)
        taken, self._left = self._left[:size], self._left[needed:]
        return taken.view(dtype).view(tuple(shape))


def map_zeros(size: int) -> torch.Tensor:
    """`size` bytes of zeros: private memory that begins at a huge page."""
    mapped = mmap.mmap(-1, size + _PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(mapped, dtype=torch.uint8)
    begin = -whole.data_ptr() % _PAGE_BYTES
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapped.madvise(mmap.MADV_HUGEPAGE, begin, size)
    return whole[begin : begin + size]
