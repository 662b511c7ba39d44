"""Weights in oneDNN's blocked layout, which bf16 products of a few rows read faster.

What PyTorch's own compiler does with frozen weights; the operators are internal to PyTorch, so that
where they are missing or refuse, nothing is packed. Results are those of `F.linear` to the bit.
"""

from __future__ import annotations

import torch

from parallel.devices.base import PackedLinear


class OneDnnLinear(PackedLinear):
    def __init__(self, packed: torch.Tensor, bias: torch.Tensor | None):
        self._packed, self._bias = packed, bias
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self.bytes = int(torch.ops.mkldnn._nbytes(packed))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._product(x, self._packed, self._bias, "none", [], "")
        return out


def pack(weight: torch.Tensor, bias: torch.Tensor | None) -> OneDnnLinear | None:
    """None unless the packed weight takes as many bytes as the plain one: dimensions that aren't
    multiples of 64 are padded, and the plan's bytes are to hold."""
    if weight.dtype is not torch.bfloat16 or any(n % 64 for n in weight.shape):
        return None
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return None
        made = OneDnnLinear(torch.ops.mkldnn._reorder_linear_weight(weight, 1), bias)
    except (AttributeError, RuntimeError):
        return None
    return made if made.bytes == weight.nbytes else None
