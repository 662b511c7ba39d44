"""What a scheduler has done so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """Since the start. `cached_tokens` of prompts were in the cache, out of `prompt_tokens` of the
    requests that began. `recomputed` and `swapped` are preemptions; `recomputed_tokens` were lost
    by them (part may still be cached when they come back). `evictions` are cached blocks taken
    for other tokens, `copies` blocks copied before a write."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    recomputed: int = 0
    recomputed_tokens: int = 0
    swapped: int = 0
    evictions: int = 0
    copies: int = 0
    refused: int = 0
    """Requests that found the queue full."""
