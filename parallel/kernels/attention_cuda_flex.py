"""Decodes by FlexAttention over the paged cache in place; prompts as in attention_cuda_varlen.py.

The cache is one long row of tokens. A block mask lists the cache's blocks that each sequence has,
so that the kernel visits no others, and within a block a mask tells which tokens are seen. Both are
made on the device from the step's block tables, once per step. That is the form of PyTorch's own
`torch/nn/attention/experimental/_paged_attention.py`, without its copies. Triton's kernel wants
blocks of a power of two from 16 tokens on, and is fast from 64 on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from parallel.kernels.attention_cuda import Paged
from parallel.kernels.attention_cuda_varlen import Call, VarlenAttention
from parallel.kernels.attention_cuda_varlen import refuses as varlen_refuses
from parallel.kernels.attention_form import Wanted
from parallel.kernels.cache import LayerCache
from parallel.kernels.step import StepInput

_LEAST_BLOCK = 16
_MOST_AT_ONCE = 64
"""Keys that the kernel takes at once, a divisor of the blocks; it doesn't choose so by itself."""
_QUERY_BLOCK = 128
"""The kernel's own block of queries must divide the mask's, though a decode has one query."""
Flex = Callable[..., torch.Tensor]


def refuses(wanted: Wanted) -> str | None:
    size = wanted.block_tokens
    if size < _LEAST_BLOCK or size & (size - 1):
        return (
            f"blocks of {size} tokens; it takes powers of two from {_LEAST_BLOCK} on: "
            "set engine.block_tokens"
        )
    return varlen_refuses(wanted)


@dataclass(frozen=True)
class Places:
    """Where each sequence has the cache's blocks: `logical` [S, blocks of the cache], -1 where a
    block isn't its own; `visited` [S, blocks of the cache], of which the first `used` [S] count."""

    logical: torch.Tensor
    visited: torch.Tensor
    used: torch.Tensor

    @classmethod
    def of(cls, paged: Paged, blocks: int, block_tokens: int) -> Places:
        rows, width = paged.tables.shape
        used = (paged.lengths + block_tokens - 1) // block_tokens
        number = torch.arange(width, device=paged.tables.device, dtype=torch.int32)
        own = torch.where(number < used.unsqueeze(1), number, -1)
        logical = own.new_full((rows, blocks), -1)
        # A table is filled up with zeros: of several numbers for a block the real one is largest.
        logical.scatter_reduce_(1, paged.tables.long(), own, "amax")
        visited = torch.zeros_like(logical)
        visited.narrow(1, 0, width).copy_(paged.tables)
        return cls(logical, visited, used.int())


class FlexAttention(VarlenAttention):
    in_place = True

    def __init__(self, wanted: Wanted, call: Call | None = None):
        super().__init__(wanted, call)
        flex, device = cast(Flex, flex_attention), wanted.device
        self._flex = device.kept("flex", lambda: device.compile(flex))

    def decode(self, query: torch.Tensor, cache: LayerCache, step: StepInput) -> torch.Tensor:
        blocks, size, _, dim = cache.key.shape
        paged = Paged.of(step).rows(0, step.decodes)
        mask = step.once(("flex", self.left), lambda: self._blocks_seen(paged, cache))
        key, value = (
            x.view(blocks * size, self.kv_heads, dim).transpose(0, 1).unsqueeze(0)
            for x in (cache.key, cache.value)
        )
        out = self._flex(
            query.unsqueeze(2),
            key,
            value,
            block_mask=mask,
            scale=self.scale,
            enable_gqa=self.group > 1,
            kernel_options={"BLOCK_N": min(size, _MOST_AT_ONCE)},
        )
        return out.squeeze(2)

    def _blocks_seen(self, paged: Paged, cache: LayerCache) -> BlockMask:
        blocks, size = cache.key.shape[:2]
        places = Places.of(paged, blocks, size)
        logical, lengths, left = places.logical, paged.lengths, self.left

        def sees(
            row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, at: torch.Tensor
        ) -> torch.Tensor:
            number = logical[row, at // size]
            token = number * size + at % size
            seen = (number >= 0) & (token < lengths[row])
            return seen if left < 0 else seen & (token >= lengths[row] - 1 - left)

        return BlockMask.from_kv_blocks(
            places.used.view(-1, 1, 1),
            places.visited.view(-1, 1, 1, blocks),
            BLOCK_SIZE=(_QUERY_BLOCK, size),
            mask_mod=sees,
            seq_lengths=(1, blocks * size),
            compute_q_blocks=False,
        )
