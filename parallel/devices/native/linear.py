"""bf16 weights packed in place for the native product, which reads few rows at memory's speed."""

from __future__ import annotations

import torch

from parallel.devices.base import PackedTable


class NativeTable(PackedTable):
    """[T, in] → [T, out]: the weight [out, in] is read in the layout of `products.cpp`. Rows of a
    batch don't know of one another: each has the result that it has alone."""

    def __init__(self, packed: torch.Tensor, bias: torch.Tensor | None):
        self._packed, self._bias = packed, bias
        self._product = torch.ops.tessera_native.product.default
        self.bytes = packed.nbytes

    @classmethod
    def pack(cls, weight: torch.Tensor, bias: torch.Tensor | None = None) -> NativeTable | None:
        """Writes over `weight`. None for other formats than bf16, and for odd numbers of inputs:
        the instruction takes pairs."""
        whole = weight.dim() == 2 and weight.is_contiguous()
        if weight.dtype is not torch.bfloat16 or not whole or weight.shape[1] % 2:
            return None
        torch.ops.tessera_native.pack_(weight)
        return cls(weight, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._product(x, self._packed, self._bias, False)
        return out

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._product(x, self._packed, self._bias, True)
        return out

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.tessera_native.packed_rows(self._packed, ids)
        return out
