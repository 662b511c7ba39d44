"""Bytes of one rank by cause, before anything is loaded.

Weights and KV cache are exact: they come from the shards that the runtime allocates. Activations
are counted tensor by tensor (activations.py), communication and runtime are estimates; all three
are named estimates in every table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil

from parallel.hardware.facts import Cluster, DeviceType
from parallel.layout.layout import Layout
from parallel.planner.formats import Formats
from parallel.planner.limits import EngineLimits
from parallel.units import MIB

ESTIMATES = ("activations", "communication", "runtime")

_NCCL_BYTES = ((2, 342 * MIB), (3, 392 * MIB))
"""By the least number of ranks: reported on H100 for two, and for four to eight."""
_WORKSPACE_BYTES = 66 * MIB
_NATIVE_WORKSPACE_BYTES = 2 * MIB
CHANNEL_BYTES = 4 * MIB
"""Of a rank that others of its host send to through shared memory: a chunk of 512 tokens in bf16
fits at once for hidden sizes to 4096 (collectives/channels.py)."""
SYMMETRIC_BYTES = 16 * MIB
"""What each GPU maps of its own for the others (collectives/symmetric_memory.py)."""
TOKENIZER_WORD_BYTES = 840
"""Of each word of the vocabulary, with its merge: of tokenizers 0.22 with 49152, 128000 and 256000
words 628, 837 and 836 were resident."""
FRONT_BYTES = 50 * MIB
"""Of the front process without its tokenizer: Python, the routes, what carries them."""
FLASHINFER_BYTES = 128 * MIB
"""As recommended for FlashInfer's wrappers, which share it; each holds 8 MiB more."""


@dataclass(frozen=True)
class RankMemory:
    """`swap` is what swapping blocks takes of the device: on CPU the pool of swapped blocks, which
    is the device's memory there; on CUDA a block on its way to the host's."""

    weights: int
    kv_cache: int
    activations: int
    communication: int
    runtime: int
    budget: int
    swap: int = 0

    @property
    def peak_tensors(self) -> int:
        return self.weights + self.kv_cache + self.activations

    @property
    def total(self) -> int:
        return self.peak_tensors + self.swap + self.communication + self.runtime

    def to_json(self) -> dict[str, int]:
        return {**asdict(self), "peak_tensors": self.peak_tensors, "total": self.total}


def weight_bytes(layout: Layout, rank: int, formats: Formats) -> int:
    return layout.weight_elements(rank) * formats.weights.bytes


def kv_bytes_per_token(layout: Layout, rank: int, formats: Formats) -> int:
    """Keys and values, and in eight bits the scale of each vector."""
    scales = layout.kv_vectors_per_token(rank) * formats.kv_cache.scale_bytes
    return layout.kv_elements_per_token(rank) * formats.kv_cache.bytes + scales


def communication_bytes(layout: Layout, rank: int, cluster: Cluster, limits: EngineLimits) -> int:
    """Buffers of the backends. CUDA: one NCCL communicator for each axis of more than one rank, and
    symmetric memory where it is asked for. CPU: what is shared where shared memory serves: with the
    native kernels their slots and the rings between stages, else the workspace of DeepSpeed's
    operator. What gloo holds it took before any tensor, as libraries do: the runtime's."""
    degrees = layout.degrees
    groups = {axis: degrees.group(axis, rank) for axis in ("tp", "pp")}
    if cluster.device(rank).type.kind == "cuda":
        nccl = sum(nccl_bytes(len(ranks)) for ranks in groups.values())
        maps = limits.symmetric_memory and _one_host(groups["tp"], cluster)
        return nccl + (SYMMETRIC_BYTES if maps else 0)
    shared = CHANNEL_BYTES if sends_through_memory(layout, rank, cluster, limits) else 0
    if shares_memory(layout, rank, cluster):
        native = all(limits.native(cluster.device(r).type) for r in groups["tp"])
        shared += _NATIVE_WORKSPACE_BYTES if native else _WORKSPACE_BYTES
    return shared


def nccl_bytes(ranks: int) -> int:
    """Of one communicator."""
    return next((size for most, size in reversed(_NCCL_BYTES) if ranks >= most), 0)


def shares_memory(layout: Layout, rank: int, cluster: Cluster) -> bool:
    """Whether the rank's tp axis gets shared memory, as far as a plan can know: it
    serves ranks of one host with a core each (collectives/choice.py)."""
    return _in_memory(layout.degrees.group("tp", rank), cluster)


def sends_through_memory(layout: Layout, rank: int, cluster: Cluster, limits: EngineLimits) -> bool:
    """The same of the stages that the rank sends to or receives from, by the native kernels."""
    ranks = layout.degrees.group("pp", rank)
    native = all(limits.native(cluster.device(r).type) for r in ranks)
    return native and _in_memory(ranks, cluster)


def _in_memory(ranks: Sequence[int], cluster: Cluster) -> bool:
    if len(ranks) == 1:
        return False
    return cluster.slowest_link(ranks, "all_reduce").kind == "shared_memory"


def _one_host(ranks: Sequence[int], cluster: Cluster) -> bool:
    """Several, on one."""
    return len(ranks) > 1 and len({cluster.device(r).node for r in ranks}) == 1


def runtime_bytes(device: DeviceType, activations: int) -> int:
    """Context and libraries; on CUDA also what the allocator reserves beyond its tensors."""
    beyond = device.fragmentation * activations if device.kind == "cuda" else 0
    return device.runtime_bytes + ceil(beyond)


def beside_bytes(device: DeviceType, beside: str, vocabulary: int) -> int:
    """Of what rank 0 has beside its rank (`EngineLimits`), where that is the device's memory: on
    CPU."""
    if device.kind != "cpu" or beside == "nothing":
        return 0
    return TOKENIZER_WORD_BYTES * vocabulary + (FRONT_BYTES if beside == "front" else 0)


def attention_bytes(device: DeviceType, form: str) -> int:
    """Workspace of the form of attention that is asked for. Which one 'auto' is depends on what is
    installed where the run is: it counts as none."""
    return FLASHINFER_BYTES if device.kind == "cuda" and form == "flashinfer" else 0


def swap_bytes(device: DeviceType, block_bytes: int, swap_blocks: int) -> int:
    """Of the device's memory, see `RankMemory`."""
    if device.kind == "cpu":
        return block_bytes * swap_blocks
    return block_bytes if swap_blocks else 0
