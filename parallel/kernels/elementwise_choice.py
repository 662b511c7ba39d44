"""Which norms, activations and rotary positions a device gets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parallel.devices.base import Device
from parallel.kernels.elementwise import FeedForwardActivation, Normalization
from parallel.kernels.elementwise_native import NativeActivation, NativeNormalization, NativeRotary
from parallel.kernels.rotary import RotaryEmbedding


@dataclass(frozen=True)
class Elementwise:
    norm: type[Normalization]
    activation: type[FeedForwardActivation]
    rotary: type[RotaryEmbedding]


PORTABLE = Elementwise(Normalization, FeedForwardActivation, RotaryEmbedding)
NATIVE = Elementwise(NativeNormalization, NativeActivation, NativeRotary)


def choose_elementwise(device: Device, dtype: torch.dtype) -> Elementwise:
    """Native ones compute in bf16 and fp32."""
    native = device.native and dtype in (torch.bfloat16, torch.float32)
    return NATIVE if native else PORTABLE
