"""A tape of live tensors: what the code of a step takes and gives back, in its order.

The pieces of the model are written down in `tape_attention.py` and `tape_layers.py`, the step in
`activations.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.architecture.spec import Rotary


class Tape:
    """Bytes that live now and at the peak so far. `width` is the bytes of a compute element;
    `cuda` says whose kernels run, `native` that norms, activations and rotary positions are the
    native kernels, `native_attention` that attention is; `scaled_cache` that the cache is in
    eight bits."""

    def __init__(
        self,
        width: int,
        cuda: bool = False,
        native: bool = False,
        native_attention: bool = False,
        scaled_cache: bool = False,
    ) -> None:
        self.width, self.cuda, self.scaled_cache = width, cuda, scaled_cache
        self.native, self.native_attention = native, native_attention
        self.live_bytes = self.peak_bytes = 0
        self._made: set[object] = set()

    def take(self, *sizes: int) -> int:
        """Bytes that live from here on; returns their sum, to be given back."""
        total = sum(sizes)
        self.live_bytes += total
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return total

    def give(self, *sizes: int) -> None:
        self.live_bytes -= sum(sizes)

    def touch(self, *sizes: int) -> None:
        """Bytes that live for a moment."""
        self.give(self.take(*sizes))

    def first(self, key: object) -> bool:
        """Whether `key` is asked for the first time: what all layers share is made then."""
        new = key not in self._made
        self._made.add(key)
        return new


@dataclass(frozen=True)
class BlockShape:
    """What one rank holds of a block, as far as the sizes of a step's tensors depend on it."""

    rms: bool
    queries: int
    keys: int
    group: int
    uniform: bool
    head_dim: int
    window: int | None
    qk_norm: bool
    rotary: Rotary | None
    columns: int
    gated: bool
    activation: str

    @property
    def grid(self) -> int:
        """Heads that attention computes: as many for each KV head."""
        return self.queries if self.uniform else self.keys * self.group


@dataclass(frozen=True)
class StepShape:
    """A step's chunks as (tokens, context), those of one token first; `rows` of them sample."""

    chunks: tuple[tuple[int, int], ...]
    rows: int

    @property
    def tokens(self) -> int:
        return sum(count for count, _ in self.chunks)

    @property
    def decodes(self) -> int:
        return sum(1 for count, _ in self.chunks if count == 1)
