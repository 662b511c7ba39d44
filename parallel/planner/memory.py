"""Bytes of one rank by cause, before anything is loaded.

Weights and KV cache are exact: they come from the shards that the runtime allocates. Activations,
communication and runtime are estimates, and named so in every table.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from parallel.hardware.facts import DeviceType
from parallel.layout.layout import Layout
from parallel.planner.formats import Formats
from parallel.planner.limits import EngineLimits
from parallel.units import MIB

GATHER_TOKENS = 32768
"""Context tokens that a decode gathers at most at once (kernels/attention.py keeps to it)."""

ESTIMATES = ("activations", "communication", "runtime")


@dataclass(frozen=True)
class RankMemory:
    weights: int
    kv_cache: int
    activations: int
    communication: int
    runtime: int
    budget: int

    @property
    def peak_tensors(self) -> int:
        return self.weights + self.kv_cache + self.activations

    @property
    def total(self) -> int:
        return self.peak_tensors + self.communication + self.runtime

    def to_json(self) -> dict[str, int]:
        return {**asdict(self), "peak_tensors": self.peak_tensors, "total": self.total}


def weight_bytes(layout: Layout, rank: int, formats: Formats) -> int:
    return layout.weight_elements(rank) * formats.weights.bytes


def kv_bytes_per_token(layout: Layout, rank: int, formats: Formats) -> int:
    return layout.kv_elements_per_token(rank) * formats.kv_cache.bytes


def activation_bytes(layout: Layout, rank: int, formats: Formats, limits: EngineLimits) -> int:
    """The largest live set of a step: one layer's attention, its FFN, or the logits.

    Counted from the tensors that the model makes (models/transformer.py), temporaries of the
    norms in float32 included; a prompt's last chunk sees the whole context."""
    spec, at = layout.spec, layout.degrees.coordinates(rank)
    stage = layout.stages[at.pp]
    b, tokens = formats.compute.bytes, limits.step_tokens
    context = limits.context(spec.context_tokens)
    residual = 2 * tokens * spec.hidden * b
    norm = tokens * spec.hidden * (b + 3 * 4)
    most = norm
    for i in (stage.first,):
        block = spec.blocks[i]
        heads = layout.rank_heads(block.attention, at)
        dim, queries, keys = block.attention.head_dim, len(heads.queries), len(heads.kv)
        projected = tokens * (queries + 2 * keys) * dim * b
        rotated = 3 * tokens * (queries + keys) * dim * b
        gathered = 2 * max(context, min(limits.requests * context, GATHER_TOKENS)) * keys * dim * b
        masks = tokens * context * (1 + b)
        attended = 3 * tokens * keys * heads.group * dim * max(b, 4)
        columns = layout.columns(block.feed_forward.width, at).size
        wide = tokens * columns * b * (4 if block.feed_forward.gated else 2)
        out = tokens * spec.hidden * b
        most = max(most, projected + max(rotated, gathered + masks + attended) + out, wide + out)
    if stage.head:
        rows, local = limits.requests, layout.vocabulary(at.pp)[at.tp].size
        gathered = 0 if layout.degrees.tp_of(at.pp) == 1 else 2 * rows * spec.vocabulary * 4
        most = max(most, rows * local * (b + 4) + gathered + 64 * spec.vocabulary)
    return residual + most


def communication_bytes(layout: Layout, rank: int, device: DeviceType) -> int:
    """NCCL: some 340 MiB per communicator as reported on H100 (docs/memory.md); on CPU the
    shared-memory workspace of the tp group (66 MiB) and gloo's buffers."""
    degrees, at = layout.degrees, layout.degrees.coordinates(rank)
    shares_layers = degrees.tp_of(at.pp) > 1
    if device.kind == "cuda":
        return 342 * MIB * (shares_layers + (at.pp > 0 or bool(degrees.receivers(rank))))
    return 66 * MIB * shares_layers + 8 * MIB * (degrees.world_size > 1)
