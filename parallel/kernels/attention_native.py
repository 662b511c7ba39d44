"""Attention on CPU by the native kernel: it reads the cache in place, with no mask, no gathered
copy and no padding. A token comes out the same to the bit whatever else is in the step."""

from __future__ import annotations

import torch

from parallel.kernels.attention_form import Wanted
from parallel.kernels.cache import LayerCache
from parallel.kernels.step import StepInput

_FORMATS = (torch.bfloat16, torch.float32)


def refuses(wanted: Wanted) -> str | None:
    if not wanted.device.native:
        return "its native kernels aren't loaded (engine.kernels)"
    if wanted.compute not in _FORMATS or wanted.cache is not wanted.compute:
        return "arithmetic and cache must both be bf16, or both fp32"
    return None


class NativeAttention:
    """`slots` as `AttentionBackend` has it; uneven groups are taken apart inside the kernel."""

    def __init__(self, wanted: Wanted):
        heads = wanted.heads
        self.slots = (
            None if heads.uniform else torch.tensor(heads.slots, device=wanted.device.torch_device)
        )
        self._facts = (heads.group, wanted.facts.scale, wanted.facts.window or 0)
        self._attend = torch.ops.tessera_native.attend.default

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: LayerCache,
        step: StepInput,
    ) -> torch.Tensor:
        """query [T, H, d], key and value [T, K, d] → [T, H, d]; the cache is written first."""
        starts = step.once("query starts", lambda: torch.tensor(step.query_starts))
        out: torch.Tensor = self._attend(
            query,
            key,
            value,
            cache.key,
            cache.value,
            step.slots,
            step.block_tables,
            step.context_lengths,
            starts,
            self.slots,
            *self._facts,
        )
        return out
