"""Norms, activations and rotary positions by the native kernels: one pass each, rounded once.

T tokens of the step, n heads, d head dim, h hidden.
"""

from __future__ import annotations

import torch

from parallel.architecture.spec import Norm, Rotary
from parallel.kernels.elementwise import FeedForwardActivation, Normalization
from parallel.kernels.rotary import RotaryEmbedding
from parallel.kernels.step import StepInput
from parallel.planner.tape_layers import NATIVE_ACTIVATIONS


class NativeNormalization(Normalization):
    def __init__(self, norm: Norm, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__(norm, weight, bias)
        self._norm = torch.ops.tessera_native.norm.default
        self._add_norm = torch.ops.tessera_native.add_norm.default
        self._facts = (weight, bias, not self.rms, self.epsilon)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, h] or [T, n, d]"""
        out: torch.Tensor = self._norm(x, *self._facts)
        return out

    def add(self, x: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._add_norm(x, delta, *self._facts), x


class NativeActivation(FeedForwardActivation):
    def __init__(self, name: str, gated: bool):
        super().__init__(name, gated)
        self._gelu = name == "gelu_tanh"
        self._native = name in NATIVE_ACTIVATIONS
        self._activation = torch.ops.tessera_native.activation.default

    def __call__(self, wide: torch.Tensor) -> torch.Tensor:
        if not self._native:
            return super().__call__(wide)
        out: torch.Tensor = self._activation(wide, self._gelu, self.gated)
        return out


class NativeRotary(RotaryEmbedding):
    """Turns heads where they lie, by tables in float32."""

    def __init__(self, rotary: Rotary, device: torch.device):
        super().__init__(rotary, device)
        self._rotate = torch.ops.tessera_native.rotate.default

    def _waves(self, step: StepInput) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, each [T, dim / 2]."""
        angles = step.positions.to(torch.float32).unsqueeze(1) * self.frequencies
        waves = angles.cos(), angles.sin()
        if self.amplitude != 1.0:
            for wave in waves:
                wave.mul_(self.amplitude)
        return waves

    def __call__(self, x: torch.Tensor, step: StepInput) -> torch.Tensor:
        """x [T, n, d], written over."""
        self._rotate(x, *step.once(self.rotary, lambda: self._waves(step)))
        return x
