"""Which form of attention a device gets, by name or by what is fastest there.

A row of the table says where it can be had; `auto` takes the first row that can be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from parallel.architecture.spec import Attention
from parallel.devices.base import Device
from parallel.errors import ConfigError, did_you_mean
from parallel.kernels.attention import AttentionBackend, PagedAttention
from parallel.layout.heads import RankHeads


@dataclass(frozen=True)
class Wanted:
    """What a layer asks for: its facts, its heads on this rank, the device, the number formats of
    arithmetic and of the cache."""

    facts: Attention
    heads: RankHeads
    device: Device
    compute: torch.dtype
    cache: torch.dtype


@dataclass(frozen=True)
class Form:
    """`refuses` says why it can't be had, None where it can."""

    name: str
    refuses: Callable[[Wanted], str | None]
    make: Callable[[Wanted], AttentionBackend]


def _anywhere(_: Wanted) -> None:
    return None


def _portable(wanted: Wanted) -> AttentionBackend:
    return PagedAttention(wanted.facts, wanted.heads, wanted.device.torch_device)


FORMS: tuple[Form, ...] = (Form("sdpa", _anywhere, _portable),)
"""The fastest first; the last one can be had everywhere."""


def choose_attention(
    facts: Attention,
    heads: RankHeads,
    device: Device,
    name: str = "auto",
    compute: torch.dtype = torch.float32,
    cache: torch.dtype | None = None,
) -> AttentionBackend:
    """`name` is a form's or 'auto'; `cache` is the format of keys and values (None: `compute`).

    Raises `ConfigError` when that form can't be had here."""
    wanted = Wanted(facts, heads, device, compute, compute if cache is None else cache)
    reasons = {form.name: form.refuses(wanted) for form in FORMS}
    legal = [form.name for form in FORMS if reasons[form.name] is None]
    if name == "auto":
        name = legal[0]
    if name not in legal:
        known = [form.name for form in FORMS]
        why = reasons[name] if name in reasons else f"unknown{did_you_mean(name, known)}"
        raise ConfigError(
            f"engine.attention={name} can't be had on {device.name}: {why}; "
            f"legal here: {', '.join(['auto', *legal])}"
        )
    return next(form for form in FORMS if form.name == name).make(wanted)
