"""Norms and activations, chosen once by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from parallel.architecture.spec import Norm

Activation = Callable[[torch.Tensor], torch.Tensor]


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
}


class Normalization:
    """RMS or layer norm over the last dimension; weight [h] and, for 'layer', bias [h]."""

    def __init__(self, norm: Norm, weight: torch.Tensor, bias: torch.Tensor | None):
        self.weight, self.bias, self.epsilon = weight, bias, norm.epsilon
        self.shape = tuple(weight.shape)
        self.rms = norm.kind == "rms"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.rms:
            return F.rms_norm(x, self.shape, self.weight, self.epsilon)
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.epsilon)

    def add(self, x: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of the sum, the sum) of the residual `x` and a branch's `delta`, both [T, h]; the
        sum is written over `x`."""
        total = x.add_(delta)
        return self(total), total


class FeedForwardActivation:
    """[T, wide] of the first product → [T, columns]: gate and up side by side where `gated`."""

    def __init__(self, name: str, gated: bool):
        self.activate, self.gated = ACTIVATIONS[name], gated

    def __call__(self, wide: torch.Tensor) -> torch.Tensor:
        if not self.gated:
            return self.activate(wide)
        gate, up = wide.chunk(2, dim=-1)
        return self.activate(gate) * up
