"""FlashInfer over the paged cache, where the package is installed.

Its wrappers split the work of a step over the GPU before it runs (`plan`), from numbers on the
host: once per step for all layers of the same shape. A graph needs a wrapper of its own, whose
buffers stay where they are; `plan` isn't captured, but called before each replay
(https://docs.flashinfer.ai/api/attention.html: BatchDecodeWithPagedKVCacheWrapper,
BatchPrefillWithPagedKVCacheWrapper). A window counts the left keys without the query's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from parallel.devices.base import Device
from parallel.kernels.attention_cuda import CudaAttention, kernel_refuses
from parallel.kernels.attention_form import Wanted
from parallel.kernels.cache import LayerCache
from parallel.kernels.step import StepInput
from parallel.planner.memory import FLASHINFER_BYTES

_HEAD_DIMS = (64, 128, 256)
_FEW_QUERIES = (1, 2)
"""Queries per KV head that are served faster without tensor cores; some others only with them."""


def refuses(wanted: Wanted) -> str | None:
    why = kernel_refuses(wanted)
    if why is not None:
        return why
    if wanted.facts.head_dim not in _HEAD_DIMS:
        return f"heads of {wanted.facts.head_dim} channels; it takes {_HEAD_DIMS}"
    return None if find_spec("flashinfer") is not None else "flashinfer isn't installed"


@dataclass(frozen=True)
class Pages:
    """A step's blocks in FlashInfer's form: sequence i has `indices[starts[i]:starts[i+1]]`, of the
    last of which `last[i]` tokens are used. `indices` on the device, the others on the host."""

    starts: torch.Tensor
    indices: torch.Tensor
    last: torch.Tensor

    @classmethod
    def of(cls, step: StepInput, block_tokens: int, device: Device) -> Pages:
        contexts = torch.tensor(step.context_tokens)
        used = (contexts + block_tokens - 1) // block_tokens
        ends = used.cumsum(0)
        rows, width = step.block_tables.shape
        begins = torch.arange(rows) * width - (ends - used)
        places = torch.arange(int(ends[-1])) + begins.repeat_interleave(used)
        flat = step.block_tables.reshape(-1)
        return cls(
            torch.cat((torch.zeros(1, dtype=torch.int64), ends)).int(),
            flat.index_select(0, device.numbers(places, torch.int64)).int(),
            (contexts - (used - 1) * block_tokens).int(),
        )


class Wrapper:
    """One of FlashInfer's, and until when its pinned buffer is read: `plan` writes to it anew."""

    def __init__(self, wrapper: Any, device: Device):
        self._wrapper, self._device = wrapper, device
        self._read: Callable[[], None] = device.mark()

    def plan(self, *args: Any, **options: Any) -> Wrapper:
        self._read()
        self._wrapper.plan(*args, **options)
        self._read = self._device.mark()
        return self

    def run(self, query: torch.Tensor, cache: LayerCache) -> torch.Tensor:
        out: torch.Tensor = self._wrapper.run(query, (cache.key, cache.value))
        return out


class FlashInferAttention(CudaAttention):
    """All sequences of a step in one call. `module` is `flashinfer`, or what stands in for it."""

    def __init__(self, wanted: Wanted, module: Any = None):
        super().__init__(wanted)
        self._module = import_module("flashinfer") if module is None else module
        self._block_tokens, self._dtype = wanted.block_tokens, wanted.compute
        self._heads = (self.kv_heads * self.group, self.kv_heads, wanted.facts.head_dim)
        self._kind = (*self._heads, self.left, self.scale)
        self._workspace = wanted.device.kept(
            "flashinfer", lambda: wanted.device.zeros((FLASHINFER_BYTES,), torch.uint8)
        )

    def attend(
        self,
        query: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor],
        cache: LayerCache,
        step: StepInput,
    ) -> torch.Tensor:
        return self._planned(step).run(query, cache)

    def prepare(self, step: StepInput) -> None:
        self._planned(step)

    def _planned(self, step: StepInput) -> Wrapper:
        return step.once(("flashinfer", self._kind), lambda: self._plan(step))

    def _plan(self, step: StepInput) -> Wrapper:
        pages = step.once("pages", lambda: Pages.of(step, self._block_tokens, self.device))
        options = {
            "window_left": self.left,
            "sm_scale": self.scale,
            "q_data_type": self._dtype,
            "kv_data_type": self._dtype,
        }
        blocks = (pages.starts, pages.indices, pages.last)
        if step.decodes == step.sequences:
            wrapper = self._decode_wrapper(step)
            return wrapper.plan(*blocks, *self._heads, self._block_tokens, **options)
        queries = torch.tensor(step.query_starts, dtype=torch.int32)
        prefill = self._module.BatchPrefillWithPagedKVCacheWrapper
        wrapper = self._keep("prefill", lambda w: prefill(w, "NHD"))
        return wrapper.plan(
            queries, *blocks, *self._heads, self._block_tokens, causal=True, **options
        )

    def _decode_wrapper(self, step: StepInput) -> Wrapper:
        make = self._module.BatchDecodeWithPagedKVCacheWrapper
        tensor_cores = self.group not in _FEW_QUERIES
        if not step.fixed:
            return self._keep("decode", lambda w: make(w, "NHD", use_tensor_cores=tensor_cores))
        rows, width = step.block_tables.shape

        def fixed(workspace: torch.Tensor) -> Any:
            starts, indices, last = (
                self.device.zeros((n,), torch.int32) for n in (rows + 1, rows * width, rows)
            )
            return make(
                workspace,
                "NHD",
                use_cuda_graph=True,
                use_tensor_cores=tensor_cores,
                paged_kv_indptr_buffer=starts,
                paged_kv_indices_buffer=indices,
                paged_kv_last_page_len_buffer=last,
            )

        return self._keep((rows, width), fixed)

    def _keep(self, name: object, make: Callable[[torch.Tensor], Any]) -> Wrapper:
        return self.device.kept(
            ("flashinfer", name, self._kind),
            lambda: Wrapper(make(self._workspace), self.device),
        )
