"""The models that benchmarks name, each made or downloaded on first use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.random_llama import LLAMA_TINY, ensure_random_llama
from parallel.conversion.default_model import ensure_default_model

MODELS: dict[str, Callable[[], Path]] = {
    "default": ensure_default_model,
    "random": ensure_random_llama,
    "tiny": lambda: ensure_random_llama(LLAMA_TINY),
}
