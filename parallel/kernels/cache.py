"""The KV cache of one rank: per layer two tensors [blocks, block_tokens, KV heads, head dim].

In eight bits two more hold the scales, [blocks, block_tokens, KV heads].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parallel.architecture.spec import ModelSpec
from parallel.devices.base import Device
from parallel.kernels.cache_formats import LARGEST, SCALE, dequantise, quantise
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
class ScaledLayerCache(LayerCache):
    """In a format of `cache_formats.LARGEST`; reads give the arithmetic's, `compute`."""

    key_scale: torch.Tensor
    value_scale: torch.Tensor
    compute: torch.dtype

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.key, self.value, self.key_scale, self.value_scale

    @property
    def _parts(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        return (self.key, self.key_scale), (self.value, self.value_scale)

    def write(self, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        for (cache, scales), new in zip(self._parts, (key, value), strict=True):
            stored, scale = quantise(new, cache.dtype)
            _bytes(cache).view(-1, *cache.shape[2:]).index_copy_(0, slots, _bytes(stored))
            scales.view(-1, scales.shape[2]).index_copy_(0, slots, scale)
            # The next ones are to find their place free.
            del stored, scale

    def read(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, per_row = blocks.shape
        flat = blocks.reshape(-1)
        out = []
        for cache, scales in self._parts:
            _, tokens, heads, dim = cache.shape
            stored = _bytes(cache).index_select(0, flat).view(cache.dtype)
            found = dequantise(stored, scales.index_select(0, flat), self.compute)
            out.append(found.view(rows, per_row * tokens, heads, dim).transpose(1, 2))
            del stored, found
        return out[0], out[1]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory: not every device moves numbers of eight bits by index."""
    return tensor.view(torch.uint8)


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
        compute: torch.dtype | None = None,
    ) -> KVCache:
        """Exactly `blocks · block_tokens · layout.kv_elements_per_token(rank)` elements, and in
        eight bits as many scales as `layout.kv_vectors_per_token(rank)` says. Reads give `compute`
        (None: `dtype`)."""
        spec: ModelSpec = layout.spec
        at = layout.degrees.coordinates(rank)
        layers: dict[int, LayerCache] = {}
        for i in layout.stages[at.pp].layers:
            attention = spec.blocks[i].attention
            heads = len(layout.rank_heads(attention, at).kv)
            shape = (blocks, block_tokens, heads, attention.head_dim)
            both = device.zeros(shape, dtype), device.zeros(shape, dtype)
            if dtype in LARGEST:
                scales = device.zeros(shape[:3], SCALE), device.zeros(shape[:3], SCALE)
                layers[i] = ScaledLayerCache(*both, *scales, compute or torch.float32)
            else:
                layers[i] = LayerCache(*both)
        return cls(layers, blocks, block_tokens)

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for c in self.layers.values() for t in c.tensors)
