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
