"""FlashAttention over the paged cache, where one of its packages is installed.

FlashAttention 3 (`flash_attn_interface`, Hopper) reads blocks of any size, FlashAttention 2
(`flash_attn`) such of a multiple of 256 tokens:
https://github.com/Dao-AILab/flash-attention, `flash_attn_with_kvcache` in
`hopper/flash_attn_interface.py` and `flash_attn/flash_attn_interface.py`. Both align a causal mask
with the last key, and count a window's left keys without the query's own.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import torch

from parallel.devices.base import Device
from parallel.kernels.attention_cuda import (
    CudaAttention,
    Paged,
    Ragged,
    head_dim_refuses,
    kernel_refuses,
)
from parallel.kernels.attention_form import Wanted
from parallel.kernels.cache import LayerCache
from parallel.kernels.step import StepInput

_PAGE_2 = 256
"""FlashAttention 2 reads blocks of a multiple of so many tokens (its `csrc/flash_api.cpp`)."""


class FlashCalls(Protocol):
    """The two calls of a version; query [n, H, d], `window` the keys to the left (-1: all)."""

    def decode(
        self, query: torch.Tensor, cache: LayerCache, paged: Paged, scale: float, window: int
    ) -> torch.Tensor:
        """One query per sequence."""
        ...

    def chunks(
        self,
        query: torch.Tensor,
        cache: LayerCache,
        paged: Paged,
        ragged: Ragged,
        scale: float,
        window: int,
    ) -> torch.Tensor: ...


class Flash2:
    """`module` is `flash_attn`."""

    def __init__(self, module: Any):
        self._decode, self._varlen = module.flash_attn_with_kvcache, module.flash_attn_varlen_func

    def decode(
        self, query: torch.Tensor, cache: LayerCache, paged: Paged, scale: float, window: int
    ) -> torch.Tensor:
        out: torch.Tensor = self._decode(
            query.unsqueeze(1),
            cache.key,
            cache.value,
            cache_seqlens=paged.lengths,
            block_table=paged.tables,
            softmax_scale=scale,
            causal=True,
            window_size=_window(window),
        )
        return out.squeeze(1)

    def chunks(
        self,
        query: torch.Tensor,
        cache: LayerCache,
        paged: Paged,
        ragged: Ragged,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        out: torch.Tensor = self._varlen(
            query,
            cache.key,
            cache.value,
            cu_seqlens_q=ragged.query_starts,
            cu_seqlens_k=ragged.key_starts,
            max_seqlen_q=ragged.most_queries,
            max_seqlen_k=ragged.most_keys,
            softmax_scale=scale,
            causal=True,
            window_size=_window(window),
            block_table=paged.tables,
        )
        return out


class Flash3:
    """`module` is `flash_attn_interface`: one function for both, which calls the block table a page
    table. Its `flash_attn_varlen_func` takes none."""

    def __init__(self, module: Any):
        self._attend = module.flash_attn_with_kvcache

    def decode(
        self, query: torch.Tensor, cache: LayerCache, paged: Paged, scale: float, window: int
    ) -> torch.Tensor:
        out: torch.Tensor = self._attend(
            query.unsqueeze(1),
            cache.key,
            cache.value,
            cache_seqlens=paged.lengths,
            page_table=paged.tables,
            softmax_scale=scale,
            causal=True,
            window_size=_window(window),
        )
        return out.squeeze(1)

    def chunks(
        self,
        query: torch.Tensor,
        cache: LayerCache,
        paged: Paged,
        ragged: Ragged,
        scale: float,
        window: int,
    ) -> torch.Tensor:
        out: torch.Tensor = self._attend(
            query,
            cache.key,
            cache.value,
            cache_seqlens=paged.lengths,
            page_table=paged.tables,
            cu_seqlens_q=ragged.query_starts,
            max_seqlen_q=ragged.most_queries,
            softmax_scale=scale,
            causal=True,
            window_size=_window(window),
        )
        return out


def _window(left: int) -> tuple[int, int]:
    return (-1, -1) if left < 0 else (left, 0)


def hopper(device: Device) -> bool:
    """Whether FlashAttention 3 serves: installed, and a GPU of its kind."""
    capability = device.capability
    return capability is not None and capability[0] == 9 and _found("flash_attn_interface")


def _found(module: str) -> bool:
    return find_spec(module) is not None


def refuses(wanted: Wanted) -> str | None:
    why = kernel_refuses(wanted) or head_dim_refuses(wanted.facts.head_dim)
    if why is not None or hopper(wanted.device):
        return why
    if not _found("flash_attn"):
        return "neither flash_attn_interface (Hopper) nor flash_attn is installed"
    if wanted.block_tokens % _PAGE_2:
        return (
            f"flash_attn reads blocks of a multiple of {_PAGE_2} tokens, not "
            f"{wanted.block_tokens}: set engine.block_tokens={_PAGE_2}"
        )
    return None


class FlashAttention(CudaAttention):
    """Decodes of a step in one call, all chunks of prompts in another."""

    def __init__(self, wanted: Wanted, calls: FlashCalls | None = None):
        super().__init__(wanted)
        self._calls = _installed(wanted.device) if calls is None else calls

    def attend(
        self,
        query: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor],
        cache: LayerCache,
        step: StepInput,
    ) -> torch.Tensor:
        paged, decodes, parts = Paged.of(step), step.decodes, []
        if decodes:
            first = query.narrow(0, 0, decodes)
            parts.append(
                self._calls.decode(first, cache, paged.rows(0, decodes), self.scale, self.left)
            )
        chunks = step.sequences - decodes
        if chunks:
            rest = query.narrow(0, decodes, step.tokens - decodes)
            ragged = Ragged.of(step, decodes, step.sequences, self.device)
            own = paged.rows(decodes, chunks)
            parts.append(self._calls.chunks(rest, cache, own, ragged, self.scale, self.left))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _installed(device: Device) -> FlashCalls:
    if hopper(device):
        return Flash3(import_module("flash_attn_interface"))
    return Flash2(import_module("flash_attn"))
