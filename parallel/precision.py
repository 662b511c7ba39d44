"""Number formats: their names here, in safetensors files and in torch, and their sizes."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Precision:
    """One number format. `bytes` is the size of one element."""

    name: str
    bytes: int
    safetensors: str
    torch: str


_ALL = (
    Precision("fp32", 4, "F32", "float32"),
    Precision("bf16", 2, "BF16", "bfloat16"),
    Precision("fp16", 2, "F16", "float16"),
)
FP8 = Precision("fp8", 1, "F8_E4M3", "float8_e4m3fn")
"""Of weights and arithmetic other engines run it; here such plans can be timed, not chosen."""
INT8 = Precision("int8", 1, "I8", "int8")
_BY_WORD = {word: p for p in _ALL for word in (p.name, p.safetensors, p.torch)}
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
