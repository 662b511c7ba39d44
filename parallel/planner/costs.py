"""What an engine adds to its kernels, and how it starts them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from parallel.hardware.device_type import DeviceType
from parallel.hardware.overheads import Overheads

SMALL_KERNELS = 14
"""Kernels of a layer beside its matrix products and attention: norms, rotary, activation, sums."""

_BUS_BYTES_PER_SECOND = 25e9
"""What copies between pinned memory and a GPU reach over PCIe 4.0 x16, of 32 GB/s; an assumption
where it wasn't calibrated."""


@dataclass(frozen=True)
class EngineCosts:
    """`overheads` beside products and collectives; None: those that were calibrated for this
    runtime on the device, or what the device's kernel starts suggest.

    `eager_layer_seconds`: host time to launch one layer kernel by kernel; a step with a prompt
    chunk isn't replayed from a graph and can't be shorter. `attention_read` is the share of the
    memory's bandwidth that reading the cache reaches, `attention_math` the share of the rate of
    large products that a prompt's attention reaches, `math_share`, `read_share` and `start_share`
    tell the engine's products from those the device was measured with: their arithmetic and memory
    rates beside the device's, and their fixed times (starts, sums along the inner dimension,
    scaling passes of narrow formats), which fused kernels and graphs make shorter. `graph`: decodes
    are replayed from a graph; `one_shot`: small all-reduces go by one-shot kernels."""

    overheads: Overheads | None = None
    eager_layer_seconds: float = 0.0
    attention_read: float | None = None
    attention_math: float = 0.5
    math_share: float = 1.0
    read_share: float = 1.0
    start_share: float = 1.0
    graph: bool = False
    one_shot: bool = False

    def seen(self, device: DeviceType) -> DeviceType:
        """The device as this engine's kernels find it."""
        if self.math_share == self.read_share == self.start_share == 1.0:
            return device
        return replace(
            device,
            memory_efficiency=device.memory_efficiency * self.read_share,
            compute_efficiency=device.compute_efficiency * self.math_share,
            launch_seconds=device.launch_seconds * self.start_share,
            serial_seconds=device.serial_seconds * self.start_share,
            arithmetic={
                name: replace(
                    a,
                    compute_efficiency=a.compute_efficiency * self.math_share,
                    serial_seconds=a.serial_seconds * self.start_share,
                    scaling_seconds=a.scaling_seconds * self.start_share,
                    scaling_row_seconds=a.scaling_row_seconds * self.start_share,
                    scaling_input_bytes=a.scaling_input_bytes * self.start_share,
                    scaling_output_bytes=a.scaling_output_bytes * self.start_share,
                )
                for name, a in device.arithmetic.items()
            },
        )

    def overheads_on(self, device: DeviceType) -> Overheads:
        if self.overheads is not None:
            return self.overheads
        if device.overheads is not None:
            return device.overheads
        return Overheads(layer_seconds=SMALL_KERNELS * device.launch_seconds)

    def cache_bytes_per_second(self, device: DeviceType) -> float:
        share = self.attention_read or device.memory_efficiency
        rate = self.overheads_on(device).cache_bytes_per_second
        return rate or share * device.memory_bandwidth_bytes_per_second

    def attention_flops_per_second(self, device: DeviceType, compute: str) -> float:
        rate = self.overheads_on(device).attention_flops_per_second
        return rate or self.attention_math * device.effective_flops_per_second(compute)

    def elementwise_bytes_per_second(self, device: DeviceType) -> float:
        rate = self.overheads_on(device).elementwise_bytes_per_second
        return rate or device.effective_bandwidth_bytes_per_second

    def host_bytes_per_second(self, device: DeviceType) -> float:
        """Of the cache's blocks on their way to host memory or back. On CPU they are copied within
        the same memory: read and written."""
        rate = self.overheads_on(device).host_bytes_per_second
        if rate is not None:
            return rate
        if device.kind == "cuda":
            return _BUS_BYTES_PER_SECOND
        return device.effective_bandwidth_bytes_per_second / 2
