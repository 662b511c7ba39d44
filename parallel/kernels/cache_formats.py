"""Keys and values in eight bits: rounded when they are stored, brought back when they are read.

Each vector of a KV head (d numbers of one token) has a scale of its own, so that its largest number
takes the format's largest; nothing overflows, and no calibration is needed. Scales are in bfloat16:
half the bytes of float32 with its range, and what is stored is rounded by the scale as it is kept,
so that its own rounding adds no error.

Of x with scale s, int8 gives |x' - x| ≤ s / 2 (uniform steps), float8_e4m3fn |x' - x| ≤ |x| / 16
and at least s · 2⁻¹⁰ (three bits of mantissa), before x' is rounded to the arithmetic's format.
"""

from __future__ import annotations

from math import inf

import torch

SCALE = torch.bfloat16
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Formats that are kept with scales, and the largest number of each."""
_LEAST_SCALE = 1e-30
"""What stands for the scale of zeros."""


def quantise(vectors: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """[..., d] → the same in `dtype`, and scales [...]."""
    largest = LARGEST[dtype]
    norms = torch.linalg.vector_norm(vectors, inf, dim=-1)
    scales = norms.float().div_(largest).clamp_(min=_LEAST_SCALE).to(SCALE)
    steps = vectors.to(torch.float32, copy=True).div_(scales.unsqueeze(-1).float())
    if not dtype.is_floating_point:
        steps.round_()
    # A scale that was rounded down leaves the largest number a little above the format's.
    return steps.clamp_(-largest, largest).to(dtype), scales


def dequantise(stored: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[..., d] and scales [...] → [..., d] in `dtype`."""
    return stored.to(dtype).mul_(scales.unsqueeze(-1).to(dtype))
