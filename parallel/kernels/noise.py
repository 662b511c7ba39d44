"""Random numbers that are a function of (seed, position, token id) and of nothing else.

A counter-based generator (splitmix64's finaliser over a keyed counter; Steele, Lea and Flood, 2014)
in integer arithmetic, so that a sampled token is the same on CPU and CUDA, in every layout and
whatever else is in the batch.
"""

from __future__ import annotations

import torch

_WORD = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def _signed(word: int) -> int:
    word %= _WORD
    return word - _WORD if word >= _WORD // 2 else word


def _mix_int(word: int) -> int:
    word = (word ^ (word >> 30)) * _FIRST % _WORD
    word = (word ^ (word >> 27)) * _SECOND % _WORD
    return word ^ (word >> 31)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def uniform(seed: int, position: int, ids: torch.Tensor) -> torch.Tensor:
    """ids [N] int64 → [N] float64 strictly between 0 and 1."""
    key = _mix_int((_mix_int(seed % _WORD) + _GOLDEN * (position + 1)) % _WORD)
    x = ids * _signed(_GOLDEN) + _signed(key)
    x = (x ^ _shifted(x, 30)) * _signed(_FIRST)
    x = (x ^ _shifted(x, 27)) * _signed(_SECOND)
    x = x ^ _shifted(x, 31)
    return (_shifted(x, 12).to(torch.float64) + 0.5) / float(1 << 52)


def gumbel(seed: int, position: int, ids: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise [N] float64: argmax of logits + noise draws from their softmax."""
    return -torch.log(-torch.log(uniform(seed, position, ids)))
