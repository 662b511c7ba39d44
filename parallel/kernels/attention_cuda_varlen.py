"""PyTorch's own FlashAttention for prompts, without a mask and without repeated heads.

`torch.nn.attention.varlen.varlen_attn` takes the prompts of a step side by side, in one call
(https://docs.pytorch.org/docs/2.12/nn.attention.varlen.html). Its block tables are FlashAttention
3's alone (https://github.com/pytorch/pytorch/pull/175924), for which attention_cuda_flash.py asks
FlashAttention itself; so a chunk with a context gathers that, and decodes are the portable form's.
A causal mask is aligned with the last key, as in FlashAttention since 2.1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from parallel.kernels.attention_cuda import CudaAttention, Ragged, head_dim_refuses, kernel_refuses
from parallel.kernels.attention_form import Wanted
from parallel.kernels.cache import LayerCache
from parallel.kernels.step import StepInput

Call = Callable[..., Any]
_MODULE = "torch.nn.attention.varlen"


def refuses(wanted: Wanted) -> str | None:
    return kernel_refuses(wanted) or head_dim_refuses(wanted.facts.head_dim)


class VarlenAttention(CudaAttention):
    """`call` is `varlen_attn`, or what stands in for it."""

    in_place = False

    def __init__(self, wanted: Wanted, call: Call | None = None):
        super().__init__(wanted)
        # Its module brings PyTorch's compiler along, which takes seconds.
        self._call = import_module(_MODULE).varlen_attn if call is None else call
        # PyTorch 2.11 takes fewer KV heads without being told, later ones ask for the flag.
        self._flags = {"enable_gqa": True} if _knows(self._call, "enable_gqa") else {}

    def attend(
        self,
        query: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor],
        cache: LayerCache,
        step: StepInput,
    ) -> torch.Tensor:
        parts = []
        if step.decodes:
            parts.append(self.decode(query.narrow(0, 0, step.decodes), cache, step))
        for begin, end in _runs(step):
            first, last = step.query_starts[begin], step.query_starts[end]
            own = query.narrow(0, first, last - first)
            if _fresh(step, begin):
                key, value = (x.narrow(0, first, last - first) for x in fresh)
            else:
                key, value = self._context(cache, step, begin)
            parts.append(self._ragged(own, key, value, Ragged.of(step, begin, end, self.device)))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def decode(self, query: torch.Tensor, cache: LayerCache, step: StepInput) -> torch.Tensor:
        """query [decodes, K·G, d] → the same shape."""
        return self._decode(query, cache, step)

    def _context(
        self, cache: LayerCache, step: StepInput, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a sequence's whole context, [L, K, d] each."""
        tokens, size = step.context_tokens[index], cache.key.shape[1]
        table = step.block_tables.narrow(0, index, 1).narrow(1, 0, -(-tokens // size))
        key, value = (x.squeeze(0).transpose(0, 1).narrow(0, 0, tokens) for x in cache.read(table))
        return key, value

    def _ragged(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ragged: Ragged
    ) -> torch.Tensor:
        out: torch.Tensor = self._call(
            query,
            key,
            value,
            ragged.query_starts,
            ragged.key_starts,
            ragged.most_queries,
            ragged.most_keys,
            scale=self.scale,
            window_size=(self.left, 0),
            **self._flags,
        )
        return out


def _knows(call: Call, name: str) -> bool:
    return name in inspect.signature(call).parameters


def _fresh(step: StepInput, index: int) -> bool:
    """Whether the step has the whole sequence."""
    tokens = step.query_starts[index + 1] - step.query_starts[index]
    return tokens == step.context_tokens[index]


def _runs(step: StepInput) -> list[tuple[int, int]]:
    """Prompts in one call: neighbours that are whole; each chunk with a context alone, so that no
    more than one context is gathered at a time."""
    runs: list[tuple[int, int]] = []
    for i in range(step.decodes, step.sequences):
        joins = _fresh(step, i) and runs and _fresh(step, runs[-1][0])
        if joins:
            runs[-1] = (runs[-1][0], i + 1)
        else:
            runs.append((i, i + 1))
    return runs
