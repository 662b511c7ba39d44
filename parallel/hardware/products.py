"""Seconds of a dense matrix product on one device (docs/hardware.md).

    seconds = launch + inner * serial + (memory^s + arithmetic^s)^(1/s) + scaling
    memory = bytes / (memory_efficiency * bandwidth)
    arithmetic = 2 * rows * columns * inner / (compute_efficiency * flops)

`serial` is the latency of summing along `inner`; s says how well reading and arithmetic overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

FORMAT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
_COPIES = 6
"""Operands that a cache must hold at once before a benchmark's next turn finds its own there."""
_CACHE_SHARPNESS = 8


@dataclass(frozen=True)
class Arithmetic:
    """What one format of arithmetic does differently from the device's own figures.

    Narrow formats scale: a pass of its own before the product turns activations into the
    format (a launch, time per row, bytes per element), and where the product can't scale its
    results another one follows (bytes per element of the output)."""

    compute_efficiency: float
    serial_seconds: float = 0.0
    scaling_seconds: float = 0.0
    scaling_row_seconds: float = 0.0
    scaling_input_bytes: float = 0.0
    scaling_output_bytes: float = 0.0

    def scaling(self, rows: int, columns: int, inner: int, bandwidth: float) -> float:
        moved = self.scaling_input_bytes * inner + self.scaling_output_bytes * columns
        return self.scaling_seconds + rows * (self.scaling_row_seconds + moved / bandwidth)


def moved_bytes(rows: int, columns: int, inner: int, weights: str, compute: str) -> float:
    """Activations in, weights, and the output, which is never narrower than two bytes."""
    into, held = FORMAT_BYTES[compute], FORMAT_BYTES[weights]
    return rows * inner * into + inner * columns * held + max(2, into) * rows * columns


def cached_share(moved: float, cache_bytes: float) -> float:
    """The part of its operands that a product finds in the cache when a benchmark repeats it."""
    if cache_bytes <= 0:
        return 0.0
    filled: float = _COPIES * moved / cache_bytes
    return 1.0 / (1.0 + min(filled, 100.0) ** _CACHE_SHARPNESS)


def smooth_max(a: float, b: float, sharpness: float) -> float:
    top = max(a, b)
    if top <= 0:
        return 0.0
    total: float = (a / top) ** sharpness + (b / top) ** sharpness
    return float(top * total ** (1 / sharpness))
