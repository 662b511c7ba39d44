"""Which norms, activations and rotary positions a device gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from parallel.architecture.spec import Norm, Rotary
from parallel.devices.base import Device
from parallel.kernels.elementwise import FeedForwardActivation, Normalization
from parallel.kernels.elementwise_compiled import (
    CompiledActivation,
    CompiledNormalization,
    CompiledRotary,
)
from parallel.kernels.elementwise_native import NativeActivation, NativeNormalization, NativeRotary
from parallel.kernels.rotary import RotaryEmbedding


@dataclass(frozen=True)
class Elementwise:
    norm: Callable[[Norm, torch.Tensor, torch.Tensor | None], Normalization]
    activation: Callable[[str, bool], FeedForwardActivation]
    rotary: Callable[[Rotary, torch.device], RotaryEmbedding]


PORTABLE = Elementwise(Normalization, FeedForwardActivation, RotaryEmbedding)
NATIVE = Elementwise(NativeNormalization, NativeActivation, NativeRotary)


def compiled(device: Device) -> Elementwise:
    return Elementwise(
        partial(CompiledNormalization, device),
        partial(CompiledActivation, device),
        partial(CompiledRotary, device),
    )


def choose_elementwise(device: Device, dtype: torch.dtype) -> Elementwise:
    """Native ones compute in bf16 and fp32."""
    if device.uncompiled == "":
        return compiled(device)
    native = device.native and dtype in (torch.bfloat16, torch.float32)
    return NATIVE if native else PORTABLE
