"""What the forms of attention on CUDA share: what a kernel must find, and a step's numbers for it.

Shapes as in attention.py. Kernels of others are called with a cache that they read in place, by the
step's block tables: nothing is gathered. Their integers are int32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from parallel.devices.base import Device
from parallel.kernels.attention import PagedAttention
from parallel.kernels.attention_form import Wanted
from parallel.kernels.cache import LayerCache
from parallel.kernels.step import StepInput

HALVES = (torch.float16, torch.bfloat16)
FULL = -1
"""The window of a kernel that has none."""


def kernel_refuses(wanted: Wanted, least: tuple[int, int] = (8, 0)) -> str | None:
    """Why no fused kernel for tensor cores takes this layer; None where one may."""
    if wanted.device.kind != "cuda":
        return "it runs on CUDA alone"
    capability = wanted.device.capability
    if capability is None:
        return "a dry run has no kernels"
    if capability < least:
        return f"it needs compute capability {_dotted(least)}, the GPU has {_dotted(capability)}"
    if wanted.compute not in HALVES:
        return f"it computes in fp16 or bf16, not {_short(wanted.compute)}: set precision.compute"
    if wanted.cache != wanted.compute:
        return f"it reads a cache of {_short(wanted.compute)}, not {_short(wanted.cache)}"
    return None


def head_dim_refuses(head_dim: int) -> str | None:
    """FlashAttention 2's and 3's limits on heads (their README, "FlashAttention-2 … supports all
    head dimensions up to 256"); others than multiples of 8 would be padded by copying the cache."""
    if head_dim % 8 or head_dim > 256:
        return f"heads of {head_dim} channels; it takes multiples of 8 up to 256"
    return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


@dataclass(frozen=True)
class Paged:
    """`tables` [S, blocks] and `lengths` [S] of a step's sequences, int32."""

    tables: torch.Tensor
    lengths: torch.Tensor

    @classmethod
    def of(cls, step: StepInput) -> Paged:
        """Made on the device from the step's own tensors, so that a graph makes them anew."""
        return step.once("paged", lambda: cls(step.block_tables.int(), step.context_lengths.int()))

    def rows(self, begin: int, count: int) -> Paged:
        return Paged(self.tables.narrow(0, begin, count), self.lengths.narrow(0, begin, count))


@dataclass(frozen=True)
class Ragged:
    """Chunks of several sequences side by side: where each one's queries and keys begin [n+1], the
    longest of each."""

    query_starts: torch.Tensor
    key_starts: torch.Tensor
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, step: StepInput, begin: int, end: int, device: Device) -> Ragged:
        """Of the sequences `begin` to `end`; keys are those of their whole context."""
        return step.once(("ragged", begin, end), lambda: cls._make(step, begin, end, device))

    @classmethod
    def _make(cls, step: StepInput, begin: int, end: int, device: Device) -> Ragged:
        starts = step.query_starts[begin : end + 1]
        contexts = step.context_tokens[begin:end]
        queries = [start - starts[0] for start in starts]
        return cls(
            device.numbers(queries, torch.int32),
            device.numbers([0, *accumulate(contexts)], torch.int32),
            max(b - a for a, b in pairwise(queries)),
            max(contexts),
        )


class CudaAttention(PagedAttention, ABC):
    """Writes the cache and brings uneven heads into the grid of KV heads × queries, where kernels
    want the same number of queries for each KV head; `attend` is the kernel's part.

    `in_place`: decodes read the cache by the block tables, so that in a graph the tables' width
    costs nothing."""

    in_place = True

    def __init__(self, wanted: Wanted):
        super().__init__(wanted.facts, wanted.heads, wanted.device.torch_device)
        self.device = wanted.device
        self.left = FULL if self.window is None else self.window - 1
        """Keys before its own that a query sees."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: LayerCache,
        step: StepInput,
    ) -> torch.Tensor:
        cache.write(step.slots, key, value)
        out = self.attend(self._to_grid(query), (key, value), cache, step)
        return out if self.slots is None else out.index_select(1, self.slots)

    def prepare(self, step: StepInput) -> None:
        """What a `fixed` step needs from the host, before it is captured or replayed."""
        return

    @abstractmethod
    def attend(
        self,
        query: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor],
        cache: LayerCache,
        step: StepInput,
    ) -> torch.Tensor:
        """query [T, K·G, d] → the same shape; `fresh` are the step's own keys and values."""
