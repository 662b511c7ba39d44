"""A form of attention, and what a layer asks of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from parallel.architecture.spec import Attention
from parallel.devices.base import Device
from parallel.kernels.attention import AttentionBackend
from parallel.layout.heads import RankHeads


@dataclass(frozen=True)
class Wanted:
    """A layer's facts, its heads on this rank, the device, the number formats of arithmetic and of
    the cache, and the tokens of one cache block."""

    facts: Attention
    heads: RankHeads
    device: Device
    compute: torch.dtype
    cache: torch.dtype
    block_tokens: int


@dataclass(frozen=True)
class Form:
    """`refuses` says why it can't be had, None where it can."""

    name: str
    refuses: Callable[[Wanted], str | None]
    make: Callable[[Wanted], AttentionBackend]
