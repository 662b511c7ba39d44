"""What an engine adds to its kernels, and how it starts them."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.hardware.device_type import DeviceType
from parallel.hardware.overheads import Overheads

SMALL_KERNELS = 14
"""Kernels of a layer beside its matrix products and attention: norms, rotary, activation, sums."""


@dataclass(frozen=True)
class EngineCosts:
    """`overheads` beside products and collectives; None: those that were calibrated for this
    runtime on the device, or what the device's kernel starts suggest.

    `eager_layer_seconds`: host time to launch one layer kernel by kernel; a step with a prompt
    chunk isn't replayed from a graph and can't be shorter. `arrival_seconds` and
    `arrival_token_seconds`: from the client to the scheduler, tokenising included.
    `attention_read` is the share of the memory's bandwidth that reading the cache reaches,
    `attention_math` the share of the rate of large products that a prompt's attention reaches,
    `product_share` the share of the device's products that the engine's own reach. `graph`:
    decodes are replayed from a graph; `one_shot`: small all-reduces go by one-shot kernels."""

    overheads: Overheads | None = None
    eager_layer_seconds: float = 0.0
    arrival_seconds: float = 0.0
    arrival_token_seconds: float = 0.0
    attention_read: float | None = None
    attention_math: float = 0.5
    product_share: float = 1.0
    graph: bool = False
    one_shot: bool = False

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
