"""What an engine adds to its kernels, and how it starts them."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.hardware.facts import DeviceType

SMALL_KERNELS = 14
"""Kernels of a layer beside its matrix products and attention: norms, rotary, activation, sums."""


@dataclass(frozen=True)
class EngineCosts:
    """Seconds beside products, attention and collectives, each with one cause.

    `step_seconds`: host work of a step: scheduling, inputs, sampling, answers. `layer_seconds`:
    starts of a layer's small kernels. `sequence_seconds`: host work for one running sequence in
    a step. `eager_layer_seconds`: host time to launch one layer kernel by kernel; a step with a
    prompt chunk isn't replayed from a graph and can't be shorter. `arrival_seconds` and
    `arrival_token_seconds`: from the client to the scheduler, tokenising included.

    `attention_read` is the share of the memory's bandwidth that reading the cache reaches,
    `attention_math` the share of the rate of large products that a prompt's attention reaches,
    `product_share` the share of the device's products that the engine's own reach. `graph`:
    decodes are replayed from a graph; `one_shot`: small all-reduces go by one-shot kernels."""

    step_seconds: float = 0.0
    layer_seconds: float | None = None
    sequence_seconds: float = 0.0
    eager_layer_seconds: float = 0.0
    arrival_seconds: float = 0.0
    arrival_token_seconds: float = 0.0
    attention_read: float | None = None
    attention_math: float = 0.5
    product_share: float = 1.0
    graph: bool = False
    one_shot: bool = False

    @staticmethod
    def of(device: DeviceType) -> EngineCosts:
        """Those of this runtime on a device, as calibrated."""
        return EngineCosts()

    def layer(self, device: DeviceType) -> float:
        if self.layer_seconds is not None:
            return self.layer_seconds
        return SMALL_KERNELS * device.launch_seconds
