"""One kind of device: what its datasheet promises, and which part of it programs reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from parallel.errors import HardwareError
from parallel.hardware.interpolation import between
from parallel.hardware.overheads import Overheads
from parallel.hardware.products import Arithmetic, cached_share, moved_bytes, smooth_max

DeviceKind = Literal["cpu", "cuda"]
DEVICE_KINDS: tuple[DeviceKind, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class DeviceType:
    """`flops_per_second` is the dense peak by precision name."""

    name: str
    kind: DeviceKind
    memory_bytes: int
    memory_bandwidth_bytes_per_second: float
    flops_per_second: Mapping[str, float] = field(hash=False)
    memory_efficiency: float = 1.0
    compute_efficiency: float = 1.0
    launch_seconds: float = 0.0
    """From one kernel's end to the next one's start, at the least."""
    serial_seconds: float = 0.0
    """A product's time for each element summed along its inner dimension, however few the rows."""
    overlap_sharpness: float = 4.0
    """How sharply the slower of memory and arithmetic hides the other: 1 is not at all."""
    row_factors: tuple[tuple[int, float], ...] = ()
    """What products of so many rows take beside the formula: a library's kernels change with the
    rows, not with the shape. Between the points in logarithms; none: 1."""
    arithmetic: Mapping[str, Arithmetic] = field(default_factory=dict, hash=False)
    """What formats do differently, by name; the others go by the figures above."""
    cache_bytes: int = 0
    """The last cache before the memory; 0: unknown, nothing is found there."""
    cache_bandwidth_bytes_per_second: float = 0.0
    runtime_bytes: int = 0
    """What context and libraries hold before any tensor: an estimate."""
    fragmentation: float = 0.1
    """What a GPU's allocator reserves beyond a step's activations, as a share of them: blocks that
    fit no request. A guess where it wasn't calibrated."""
    power_watts: float | None = None
    dollars_per_hour: float | None = None
    threads: float = 1.0
    """Cores that compute for one rank (cpu); below 1 when ranks share a core."""
    native_kernels: bool = False
    """A CPU that the native kernels are written for, with a compiler at hand."""
    estimated: bool = False
    """True when the figures are rules of thumb, neither a datasheet nor a measurement."""
    overheads: Overheads | None = None
    """What this runtime adds to its products there; None where it wasn't calibrated."""

    @property
    def effective_bandwidth_bytes_per_second(self) -> float:
        return self.memory_efficiency * self.memory_bandwidth_bytes_per_second

    def flops_per_second_of(self, precision: str) -> float:
        """The peak; bf16 and fp16 stand in for each other, fp32 for whatever else has no rate
        of its own."""
        for name in (precision, {"bf16": "fp16", "fp16": "bf16"}.get(precision, ""), "fp32"):
            if name in self.flops_per_second:
                return self.flops_per_second[name]
        raise HardwareError(
            f"device type '{self.name}' has no rate for {precision}; "
            f"it has {', '.join(self.flops_per_second)}: add one under 'teraflops'"
        )

    def effective_flops_per_second(self, precision: str) -> float:
        """The rate that large products reach."""
        found = self.arithmetic.get(precision)
        efficiency = self.compute_efficiency if found is None else found.compute_efficiency
        return efficiency * self.flops_per_second_of(precision)

    def product_seconds(
        self,
        rows: int,
        columns: int,
        inner: int,
        weights: str,
        compute: str,
        repeated: bool = False,
    ) -> float:
        """A dense product [rows, inner] x [inner, columns], its launch included (products.py).

        In a model every weight comes from memory; `repeated` says that a benchmark ran the
        same product over and over, which finds small operands in the cache."""
        bandwidth = self.effective_bandwidth_bytes_per_second
        moved = moved_bytes(rows, columns, inner, weights, compute)
        cached = cached_share(moved, self.cache_bytes) if repeated else 0.0
        fast = max(bandwidth, self.cache_bandwidth_bytes_per_second)
        memory = moved * ((1 - cached) / bandwidth + cached / fast)
        flops = 2.0 * rows * columns * inner / self.effective_flops_per_second(compute)
        own = self.arithmetic.get(compute)
        serial = self.serial_seconds if own is None else own.serial_seconds
        seconds = self.launch_seconds + inner * serial
        seconds += smooth_max(memory, flops, self.overlap_sharpness)
        seconds += own.scaling(rows, columns, inner, bandwidth) if own else 0.0
        return seconds * between(self.row_factors, rows) if self.row_factors else seconds
