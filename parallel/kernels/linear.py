"""Products with a weight, in the form that the device is fastest with."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from parallel.devices.base import Device, PackedLinear


class Linear:
    """[T, in] → [T, out] with weight [out, in]. The weight may be packed once it is filled."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        self.weight: torch.Tensor | None = weight
        self.bias = bias
        self._packed: PackedLinear | None = None

    def pack(self, device: Device) -> PackedLinear | None:
        """Gives the weight up for the device's own form, if it has a faster one as large."""
        assert self.weight is not None, "a weight is packed once"
        self._packed = device.pack_linear(self.weight, self.bias)
        if self._packed is not None:
            self.weight = None
        return self._packed

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed is not None:
            return self._packed(x)
        assert self.weight is not None
        return F.linear(x, self.weight, self.bias)
