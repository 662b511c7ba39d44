"""Number formats: their names here, in safetensors files and in torch, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Precision:
    """One number format. `bytes` is the size of one element, `scale_bytes` of the scale that each
    vector has beside it in a cache."""

    name: str
    bytes: int
    safetensors: str
    torch: str
    scale_bytes: int = 0


FP32 = Precision("fp32", 4, "F32", "float32")
BF16 = Precision("bf16", 2, "BF16", "bfloat16")
FP16 = Precision("fp16", 2, "F16", "float16")
_ALL = (FP32, BF16, FP16)
FP8 = Precision("fp8", 1, "F8_E4M3", "float8_e4m3fn")
"""Of weights and arithmetic other engines run it; here such plans can be timed, not chosen."""
_CACHE_ONLY = (
    Precision("int8", 1, "I8", "int8", scale_bytes=2),
    Precision("fp8", 1, "F8_E4M3", "float8_e4m3fn", scale_bytes=2),
)
_BY_WORD = {word: p for p in _ALL for word in (p.name, p.safetensors, p.torch)}
_CACHE_BY_NAME = {p.name: p for p in (*_ALL, *_CACHE_ONLY)}
NAMES = tuple(p.name for p in _ALL)


def precision(word: str) -> Precision:
    """The format called `word` here, in a safetensors header or in torch.

    Raises `ConfigError` for any other word."""
    try:
        return _BY_WORD[word]
    except KeyError:
        raise ConfigError(
            f"unknown precision '{word}'{did_you_mean(word, NAMES)}; known: {', '.join(NAMES)}"
        ) from None


def cache_precision(name: str) -> Precision:
    """A format of keys and values: those of `precision`, and int8 and fp8.

    Raises `ConfigError` for any other name."""
    try:
        return _CACHE_BY_NAME[name]
    except KeyError:
        raise ConfigError(
            f"unknown precision.kv_cache '{name}'{did_you_mean(name, _CACHE_BY_NAME)}; known: "
            f"{', '.join(_CACHE_BY_NAME)}"
        ) from None
