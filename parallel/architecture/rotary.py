"""Rotary facts from a config, in the older and the newer spelling of Hugging Face."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from parallel.architecture.spec import Rotary, RotaryScaling
from parallel.errors import CheckpointError

_KNOWN = ("default", "linear", "llama3", "yarn")
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (),
}


def read_rotary(config: Mapping[str, Any], head_dim: int, context: int) -> Rotary:
    """`rope_parameters` (transformers 5), else `rope_theta` with `rope_scaling`."""
    facts: dict[str, Any] = dict(config.get("rope_scaling") or {})
    facts.update(config.get("rope_parameters") or {})
    kind = str(facts.get("rope_type", facts.get("type", "default")))
    if kind not in _KNOWN:
        raise CheckpointError(
            f"config.json: rope type '{kind}' is not known; known: {', '.join(_KNOWN)}"
        )
    theta = float(facts.get("rope_theta", config.get("rope_theta", 10000.0)))
    partial = float(facts.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)))
    dim = int(head_dim * partial)
    if kind == "default":
        return Rotary(theta, dim)
    return Rotary(theta, dim, _scaling(kind, facts, context))


def _scaling(kind: str, facts: Mapping[str, Any], context: int) -> RotaryScaling:
    original = int(facts.get("original_max_position_embeddings") or context)
    for key in _NEEDED[kind]:
        if facts.get(key) is None:
            raise CheckpointError(f"config.json: rope type '{kind}' needs a '{key}'")
    factor = float(facts.get("factor") or context / original)
    if kind == "linear":
        return RotaryScaling(kind, factor)
    if kind == "llama3":
        return RotaryScaling(
            kind,
            factor,
            original,
            low_frequency=float(facts["low_freq_factor"]),
            high_frequency=float(facts["high_freq_factor"]),
        )
    return RotaryScaling(
        kind,
        factor,
        original,
        beta_fast=float(facts.get("beta_fast") or 32),
        beta_slow=float(facts.get("beta_slow") or 1),
        attention_factor=_yarn_attention(facts, factor),
        truncate=bool(facts.get("truncate", True)),
    )


def _yarn_attention(facts: Mapping[str, Any], factor: float) -> float:
    """YaRN's temperature on the scores (arXiv 2309.00071, section 3.4)."""

    def stretch(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    given = facts.get("attention_factor")
    if given is not None:
        return float(given)
    mscale, all_dim = facts.get("mscale"), facts.get("mscale_all_dim")
    if mscale and all_dim:
        return stretch(float(mscale)) / stretch(float(all_dim))
    return stretch(1.0)


def inverse_frequencies(rotary: Rotary) -> list[float]:
    """`dim / 2` angular frequencies, scaled (Llama 3.1 model card; arXiv 2309.00071)."""
    base = [rotary.theta ** (-(2 * i) / rotary.dim) for i in range(rotary.dim // 2)]
    scaling = rotary.scaling
    if scaling is None:
        return base
    if scaling.kind == "linear":
        return [f / scaling.factor for f in base]
    if scaling.kind == "llama3":
        return [_llama3(f, scaling) for f in base]
    low, high = _yarn_range(rotary, scaling)
    return [_yarn(i, f, low, high, scaling.factor) for i, f in enumerate(base)]


def _llama3(frequency: float, s: RotaryScaling) -> float:
    wavelength = 2 * math.pi / frequency
    if wavelength < s.original_context / s.high_frequency:
        return frequency
    if wavelength > s.original_context / s.low_frequency:
        return frequency / s.factor
    share = (s.original_context / wavelength - s.low_frequency) / (
        s.high_frequency - s.low_frequency
    )
    return (1 - share) * frequency / s.factor + share * frequency


def _yarn_range(rotary: Rotary, s: RotaryScaling) -> tuple[float, float]:
    def channel(turns: float) -> float:
        return (
            rotary.dim
            * math.log(s.original_context / (turns * 2 * math.pi))
            / (2 * math.log(rotary.theta))
        )

    low, high = channel(s.beta_fast), channel(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary.dim - 1)
    return low, high if high > low else low + 0.001


def _yarn(index: int, frequency: float, low: float, high: float, factor: float) -> float:
    ramp = min(max((index - low) / (high - low), 0.0), 1.0)
    return frequency / factor * ramp + frequency * (1 - ramp)
