"""Attention over a block-addressed cache: what every form of it is asked for, and the portable one.

Shapes: T tokens of the step, H query and K KV heads of this rank, d head dim, G queries per KV
head, L context tokens. `attention_choice.py` says which form a device gets; the one here runs
everywhere on PyTorch's scaled-dot-product attention and is the reference for the others.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from parallel.architecture.spec import Attention
from parallel.kernels.cache import LayerCache
from parallel.kernels.step import StepInput
from parallel.layout.heads import RankHeads
from parallel.planner.tape_attention import GATHER_TOKENS


def repeats_heads(device: torch.device) -> bool:
    """Whether attention with a mask needs as many KV heads as query heads: of PyTorch's kernels on
    CUDA not all take fewer, and what is left to them then holds every score at once."""
    return device.type != "cpu"


class AttentionBackend(Protocol):
    """One layer's attention on one rank. `slots` [H] is what it keeps on the device to tell where
    each query stands in a grid of KV heads × queries, None where they lie so already."""

    slots: torch.Tensor | None

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: LayerCache,
        step: StepInput,
    ) -> torch.Tensor:
        """query [T, H, d], key and value [T, K, d] → [T, H, d]; the cache is written first. All
        three may be views of one tensor [T, H + 2K, d]."""
        ...


class PagedAttention:
    """Decodes of a step go in one batch over gathered blocks, prefill chunks one by one."""

    def __init__(self, attention: Attention, heads: RankHeads, device: torch.device):
        self.scale, self.window = attention.scale, attention.window
        self.kv_heads, self.group = len(heads.kv), heads.group
        self.repeats = repeats_heads(device)
        self.slots = (
            None if heads.uniform else torch.tensor(heads.slots, dtype=torch.int64, device=device)
        )

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: LayerCache,
        step: StepInput,
    ) -> torch.Tensor:
        """query [T, H, d], key and value [T, K, d] → [T, H, d]; the cache is written first."""
        cache.write(step.slots, key, value)
        query = self._to_grid(query)
        parts = []
        if step.decodes:
            parts.append(self._decode(query.narrow(0, 0, step.decodes), cache, step))
        for i in range(step.decodes, step.sequences):
            begin, end = step.query_starts[i], step.query_starts[i + 1]
            q, k, v = (x.narrow(0, begin, end - begin) for x in (query, key, value))
            parts.append(self._prefill(q, (k, v), cache, step, i))
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out if self.slots is None else out.index_select(1, self.slots)

    def _to_grid(self, query: torch.Tensor) -> torch.Tensor:
        """[T, H, d] → [T, K·G, d], zeros where a KV head has fewer than G queries."""
        if self.slots is None:
            return query
        grid = query.new_zeros(query.shape[0], self.kv_heads * self.group, query.shape[2])
        return grid.index_copy_(1, self.slots, query)

    def _decode(self, query: torch.Tensor, cache: LayerCache, step: StepInput) -> torch.Tensor:
        """query [decodes, K·G, d] → the same shape; as many rows at once as may be gathered."""
        rows, heads, dim = query.shape
        first, blocks = self._blocks(step, cache)
        span = blocks.shape[1] * cache.key.shape[1]
        most = max(1, GATHER_TOKENS // span)
        mask = None
        alone = rows == 1 and not step.fixed
        if not alone:
            mask = step.once(("decode", self.window), lambda: self._mask(step, first, span))
        parts = []
        for begin in range(0, rows, most):
            count = min(most, rows - begin)
            key, value = cache.read(blocks.narrow(0, begin, count))
            if alone:
                end = step.context_tokens[0] - first
                start = self._begin(step.context_tokens[0]) - first
                key, value = (x.narrow(2, start, end - start) for x in (key, value))
            grouped = query.narrow(0, begin, count).view(count, self.kv_heads, self.group, dim)
            seen = None if mask is None else mask.narrow(0, begin, count)
            out = F.scaled_dot_product_attention(
                grouped, key, value, attn_mask=seen, scale=self.scale
            )
            parts.append(out.reshape(count, heads, dim))
            # The next gather is to find their place free.
            del key, value, out
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _begin(self, context: int) -> int:
        return 0 if self.window is None else max(0, context - self.window)

    def _blocks(self, step: StepInput, cache: LayerCache) -> tuple[int, torch.Tensor]:
        """The first context token that a decode may need, and the blocks from there on."""
        size = cache.key.shape[1]
        contexts = step.context_tokens[: step.decodes]
        first = 0 if step.fixed else min(self._begin(c) for c in contexts) // size
        last = -(-max(contexts) // size)
        tables = step.block_tables.narrow(0, 0, step.decodes).narrow(1, first, last - first)
        return first * size, tables

    def _mask(self, step: StepInput, first: int, length: int) -> torch.Tensor:
        """[decodes, 1, 1, L], True where a decode may look."""
        at = torch.arange(first, first + length, device=step.positions.device).unsqueeze(0)
        ends = step.context_lengths.narrow(0, 0, step.decodes).unsqueeze(1)
        seen = at < ends
        if self.window is not None:
            seen &= at >= ends - self.window
        return seen.view(step.decodes, 1, 1, length)

    def _prefill(
        self,
        query: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor],
        cache: LayerCache,
        step: StepInput,
        index: int,
    ) -> torch.Tensor:
        tokens, context = query.shape[0], step.context_tokens[index]
        if tokens == context:
            key, value = (x.transpose(0, 1).unsqueeze(0) for x in fresh)
        else:
            size = cache.key.shape[1]
            table = step.block_tables.narrow(0, index, 1).narrow(1, 0, -(-context // size))
            key, value = (x.narrow(2, 0, context) for x in cache.read(table))
        mask = None
        if tokens != context or self.window is not None:
            mask = step.once(("prefill", index, self.window), lambda: self._causal(step, index))
        grouped = self.group > 1
        if grouped and mask is not None and self.repeats:
            key, value = (x.repeat_interleave(self.group, dim=1) for x in (key, value))
            grouped = False
        out = F.scaled_dot_product_attention(
            query.transpose(0, 1).unsqueeze(0),
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=grouped,
        )
        return out.squeeze(0).transpose(0, 1)

    def _causal(self, step: StepInput, index: int) -> torch.Tensor:
        """[tokens, L], True where a chunk's token may look."""
        begin, end = step.query_starts[index], step.query_starts[index + 1]
        own = step.positions.narrow(0, begin, end - begin).unsqueeze(1)
        at = torch.arange(step.context_tokens[index], device=own.device).unsqueeze(0)
        seen = at <= own
        if self.window is not None:
            seen &= at > own - self.window
        return seen
