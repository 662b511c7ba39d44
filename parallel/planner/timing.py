"""Seconds of a step: roofline per operation, plus the communication that nothing hides."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.hardware.facts import Cluster, DeviceType
from parallel.layout.layout import Layout
from parallel.planner.communication import collectives_seconds, step_collectives
from parallel.planner.formats import Formats

SMALL_KERNELS = 14
"""Kernels of a layer beside its matrix products and attention: norms, rotary, activation, sums."""


@dataclass(frozen=True)
class StepTime:
    """One step of one batch. `seconds` through all stages in turn; `slowest_seconds` of the
    stage that limits a full pipeline; `communication_bytes` sent by the rank that sends most."""

    seconds: float
    slowest_seconds: float
    communication_seconds: float
    communication_bytes: int


def step_time(
    layout: Layout,
    cluster: Cluster,
    formats: Formats,
    tokens: int,
    contexts: int,
    rows: int,
    replica: int = 0,
) -> StepTime:
    """A step of `tokens` new tokens that attend to `contexts` cached ones in all; `rows` sampled.

    A stage takes as long as its slowest rank: uneven shards show here."""
    degrees = layout.degrees
    stages, communication, sent = [], [], 0
    for pp in range(degrees.pp):
        ranks = [degrees.rank(tp, pp, replica) for tp in range(degrees.tp)]
        compute = max(
            _compute_seconds(layout, r, cluster.device(r).type, formats, tokens, contexts, rows)
            for r in ranks
        )
        found = [step_collectives(layout, r, formats, tokens, rows) for r in ranks]
        exchanged = max(
            collectives_seconds(f, layout, r, cluster) for f, r in zip(found, ranks, strict=True)
        )
        stages.append(compute + exchanged)
        communication.append(exchanged)
        sent = max(sent, *(sum(c.calls * c.sent_bytes for c in f) for f in found))
    return StepTime(sum(stages), max(stages), sum(communication), sent)


def _compute_seconds(
    layout: Layout,
    rank: int,
    device: DeviceType,
    formats: Formats,
    tokens: int,
    contexts: int,
    rows: int,
) -> float:
    spec, at = layout.spec, layout.degrees.coordinates(rank)
    stage, name = layout.stages[at.pp], formats.compute.name
    w, b, kv = formats.weights.bytes, formats.compute.bytes, formats.kv_cache.bytes

    def product(out: int, into: int, count: int) -> float:
        moved = out * into * w + count * (out + into) * b
        return device.operation_seconds(moved, 2.0 * out * into * count, name)

    per_layer: dict[object, float] = {}
    seconds = 0.0
    for i in stage.layers:
        block = spec.blocks[i]
        if block not in per_layer:
            heads = layout.rank_heads(block.attention, at.tp)
            dim, queries, keys = block.attention.head_dim, len(heads.queries), len(heads.kv)
            columns = layout.columns(block.feed_forward.width)[at.tp].size
            wide = columns * (2 if block.feed_forward.gated else 1)
            per_layer[block] = (
                product((queries + 2 * keys) * dim, spec.hidden, tokens)
                + device.operation_seconds(
                    2.0 * contexts * keys * dim * kv, 4.0 * contexts * queries * dim, name
                )
                + product(spec.hidden, queries * dim, tokens)
                + product(wide, spec.hidden, tokens)
                + product(spec.hidden, columns, tokens)
                + SMALL_KERNELS * device.launch_seconds
            )
        seconds += per_layer[block]
    if stage.head and rows:
        seconds += product(layout.vocabulary[at.tp].size, spec.hidden, rows)
    return seconds
