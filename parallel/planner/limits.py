"""What a run is sized for: the engine's limits, and the workload that times are predicted for."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from parallel.errors import ConfigError, did_you_mean
from parallel.hardware.device_type import DeviceType

_COUNTS = ("step_tokens", "requests", "block_tokens", "context_tokens", "batches", "queue")
_CHOICES = {
    "beside": ("nothing", "batch", "front"),
    "kernels": ("auto", "native", "portable"),
    "attention": ("auto", "sdpa", "native", "varlen", "flash_attn", "flashinfer", "flex"),
    "sequence_parallel": ("auto", "on", "off"),
}


@dataclass(frozen=True)
class EngineLimits:
    """`step_tokens`: most tokens in one batch; `requests`: most running at once in a replica;
    `context_tokens`: longest sequence (None: the model's); `batches`: in flight in a pipeline
    (None: one per stage); `block_tokens`: tokens per cache block; `queue`: most that wait in a
    replica (None: 16 · `requests`); `swap_gib`: host memory of a rank for preempted requests;
    `symmetric_memory`: tensor-parallel GPUs of a host map some of each other's; `beside`: what
    rank 0 has beside its rank, a 'batch' of prompts from a file in its process or the 'front' of a
    server in one of its own.

    `kernels`, `attention` and `sequence_parallel` name forms of the same arithmetic."""

    step_tokens: int = 512
    requests: int = 32
    block_tokens: int = 16
    context_tokens: int | None = None
    batches: int | None = None
    queue: int | None = None
    prefix_cache: bool = True
    swap_gib: float = 0.0
    kernels: str = "auto"
    attention: str = "auto"
    cuda_graphs: bool = True
    sequence_parallel: str = "auto"
    symmetric_memory: bool = False
    beside: str = "nothing"

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"engine.{name}={value} is out of range; give at least 1")
        if not 0 <= self.swap_gib < inf:
            raise ConfigError(
                f"engine.swap_gib={self.swap_gib} is out of range; give 0 (none) or a size in GiB"
            )
        for name, legal in _CHOICES.items():
            value = getattr(self, name)
            if value not in legal:
                raise ConfigError(
                    f"engine.{name}={value} is unknown{did_you_mean(value, legal)}; "
                    f"legal: {', '.join(legal)}"
                )

    @property
    def most_waiting(self) -> int:
        """In one replica."""
        return 16 * self.requests if self.queue is None else self.queue

    @property
    def most_sequences(self) -> int:
        """That a replica holds, running and waiting ones."""
        return min(self.requests, self.step_tokens) + self.most_waiting

    def native(self, device: DeviceType) -> bool:
        """Whether the native kernels of `device` run. Raises `ConfigError` where it has none and
        they are asked for."""
        if self.kernels == "native" and not device.native_kernels:
            raise ConfigError(
                f"engine.kernels=native: device type '{device.name}' doesn't have the native "
                "kernels, which are for CPUs with avx512_bf16 and a C++ compiler (a cluster file "
                "says native_kernels: true); say engine.kernels=auto"
            )
        return device.native_kernels and self.kernels != "portable"

    def context(self, model_tokens: int) -> int:
        return min(model_tokens, self.context_tokens or model_tokens)


@dataclass(frozen=True)
class Workload:
    """Requests of `input_tokens` and `output_tokens`, `concurrency` of them at once."""

    input_tokens: int = 512
    output_tokens: int = 128
    concurrency: int = 8

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens", "concurrency"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"workload.{name}={value} is out of range; give at least 1")


@dataclass(frozen=True)
class Budget:
    """Bytes that one rank may use: `memory_gib`, else `share` of its device."""

    memory_gib: float | None = None
    share: float = 0.85

    def __post_init__(self) -> None:
        if self.memory_gib is not None and not 0 < self.memory_gib < inf:
            raise ConfigError(f"memory_gib={self.memory_gib} is out of range; give a positive size")
        if not 0 < self.share <= 1:
            raise ConfigError(f"memory_share={self.share} is out of range; give 0 < share ≤ 1")

    def bytes(self, device_bytes: int) -> int:
        if self.memory_gib is not None:
            return int(self.memory_gib * 1024**3)
        return int(self.share * device_bytes)
