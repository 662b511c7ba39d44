"""Products with a weight, in the form that the device is fastest with."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from parallel.devices.base import Device, PackedLinear, PackedTable


class Linear:
    """[T, in] → [T, out] with weight [out, in]. The weight may be packed once it is filled."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        self.weight: torch.Tensor | None = weight
        self.bias = bias
        self._packed: PackedLinear | None = None

    def pack(self, device: Device) -> PackedLinear | None:
        """Gives the weight up for the device's own form, if it has a faster one as large."""
        assert self.weight is not None, "a weight is packed once"
        self._packed = self._form(device, self.weight)
        if self._packed is not None:
            self.weight = None
        return self._packed

    def _form(self, device: Device, weight: torch.Tensor) -> PackedLinear | None:
        return device.pack_linear(weight, self.bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed is not None:
            return self._packed(x)
        assert self.weight is not None
        return F.linear(x, self.weight, self.bias)

    def wide(self, x: torch.Tensor, device: Device) -> torch.Tensor:
        """[T, in] → [T, out] in float32: what is compared isn't rounded to a narrower format first,
        if the device can do without. For weights without a bias."""
        if self._packed is not None:
            return self._packed.wide(x)
        assert self.weight is not None and self.bias is None
        return device.wide_product(x, self.weight)


class Table(Linear):
    """A weight [rows, in] without a bias whose rows are looked up as well: a tied head."""

    def __init__(self, weight: torch.Tensor):
        super().__init__(weight, None)
        self._packed_table: PackedTable | None = None

    def _form(self, device: Device, weight: torch.Tensor) -> PackedLinear | None:
        self._packed_table = device.pack_table(weight)
        return self._packed_table

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [T] → [T, in]."""
        if self._packed_table is not None:
            return self._packed_table.rows(ids)
        assert self.weight is not None
        return F.embedding(ids, self.weight)
