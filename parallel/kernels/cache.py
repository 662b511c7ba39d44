"""The KV cache of one rank: per layer two tensors [blocks, block_tokens, KV heads, head dim]."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parallel.architecture.spec import ModelSpec
from parallel.devices.base import Device
from parallel.layout.layout import Layout


@dataclass(frozen=True)
class LayerCache:
    key: torch.Tensor
    value: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that is held for a block, blocks first."""
        return self.key, self.value

    def write(self, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """key, value [T, H_kv, d] into rows `slots` [T] of the cache."""
        for cache, new in ((self.key, key), (self.value, value)):
            cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, new)

    def read(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """blocks [B, N] → keys and values [B, H_kv, N · block_tokens, d]."""
        rows, per_row = blocks.shape
        out = []
        for cache in (self.key, self.value):
            _, tokens, heads, dim = cache.shape
            flat = cache.index_select(0, blocks.reshape(-1))
            out.append(flat.view(rows, per_row * tokens, heads, dim).transpose(1, 2))
        return out[0], out[1]


@dataclass(frozen=True)
class KVCache:
    """The caches of the layers that a rank holds, by global layer number."""

    layers: dict[int, LayerCache]
    blocks: int
    block_tokens: int

    @classmethod
    def allocate(
        cls,
        layout: Layout,
        rank: int,
        blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: Device,
    ) -> KVCache:
        """Exactly `blocks · block_tokens · layout.kv_elements_per_token(rank)` elements."""
        spec: ModelSpec = layout.spec
        at = layout.degrees.coordinates(rank)
        layers = {}
        for i in layout.stages[at.pp].layers:
            attention = spec.blocks[i].attention
            heads = len(layout.rank_heads(attention, at).kv)
            shape = (blocks, block_tokens, heads, attention.head_dim)
            layers[i] = LayerCache(device.zeros(shape, dtype), device.zeros(shape, dtype))
        return cls(layers, blocks, block_tokens)

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for c in self.layers.values() for t in c.tensors)
