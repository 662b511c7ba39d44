"""Norms, activations and rotary positions as the device compiles them: one kernel where there were
three to five, which on a GPU each read and write the whole array (https://docs.pytorch.org/docs/
stable/generated/torch.compile.html).

They are what torch.compile pays for here: products and attention are libraries' kernels, and what
is between kernels in a decode step goes with CUDA graphs. The arithmetic is the portable forms';
intermediate results aren't rounded to the compute format.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from parallel.architecture.spec import Norm, Rotary
from parallel.devices.base import Device
from parallel.kernels.elementwise import FeedForwardActivation, Normalization
from parallel.kernels.rotary import RotaryEmbedding, rotate


def _add_rms(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """The norm of the sum, which is written over `x`."""
    return F.rms_norm(x.add_(delta), tuple(weight.shape), weight, epsilon)


def _add_layer(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    epsilon: float,
) -> torch.Tensor:
    return F.layer_norm(x.add_(delta), tuple(weight.shape), weight, bias, epsilon)


class CompiledNormalization(Normalization):
    """Alone a norm is one kernel already; with the residual's sum it becomes one."""

    def __init__(self, device: Device, norm: Norm, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__(norm, weight, bias)
        self._add_rms = device.kept(_add_rms, lambda: device.compile(_add_rms))
        self._add_layer = device.kept(_add_layer, lambda: device.compile(_add_layer))

    def add(self, x: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.rms:
            return self._add_rms(x, delta, self.weight, self.epsilon), x
        return self._add_layer(x, delta, self.weight, self.bias, self.epsilon), x


class CompiledActivation(FeedForwardActivation):
    def __init__(self, device: Device, name: str, gated: bool):
        super().__init__(name, gated)
        plain = super().__call__
        self._run = device.kept(("activation", name, gated), lambda: device.compile(plain))

    def __call__(self, wide: torch.Tensor) -> torch.Tensor:
        return self._run(wide)


class CompiledRotary(RotaryEmbedding):
    def __init__(self, device: Device, rotary: Rotary, on: torch.device):
        super().__init__(rotary, on)
        self.rotate = device.kept(rotate, lambda: device.compile(rotate))
