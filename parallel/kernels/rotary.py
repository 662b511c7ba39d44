"""Rotary position embedding (arXiv 2104.09864) in the half-split form of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable

import torch

from parallel.architecture.rotary import inverse_frequencies
from parallel.architecture.spec import Rotary
from parallel.kernels.step import StepInput

Rotate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class RotaryEmbedding:
    """Rotates the first `dim` channels of each head; cos and sin are made once per step."""

    def __init__(self, rotary: Rotary, device: torch.device):
        self.rotary = rotary
        self.frequencies = torch.tensor(
            inverse_frequencies(rotary), dtype=torch.float32, device=device
        )
        scaling = rotary.scaling
        self.amplitude = scaling.attention_factor if scaling else 1.0
        self.rotate: Rotate = rotate

    def tables(self, step: StepInput, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, each [T, 1, dim]."""
        return step.once((self.rotary, dtype), lambda: self._tables(step, dtype))

    def _tables(self, step: StepInput, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        angles = step.positions.to(torch.float32).unsqueeze(1) * self.frequencies
        both = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        return (both.cos() * self.amplitude).to(dtype), (both.sin() * self.amplitude).to(dtype)

    def __call__(self, x: torch.Tensor, step: StepInput) -> torch.Tensor:
        """x [T, H, head_dim] → the same shape."""
        cos, sin = self.tables(step, x.dtype)
        dim = self.rotary.dim
        if dim == x.shape[-1]:
            return self.rotate(x, cos, sin)
        turned, kept = x.split([dim, x.shape[-1] - dim], dim=-1)
        return torch.cat((self.rotate(turned, cos, sin), kept), dim=-1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [T, H, dim], cos and sin [T, 1, dim] → [T, H, dim]."""
    left, right = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((-right, left), dim=-1), sin)
