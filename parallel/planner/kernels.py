"""What a rank computes in a step, as shapes: products, cache reads and passes over activations."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from parallel.architecture.spec import Block
from parallel.layout.degrees import Coordinates
from parallel.layout.layout import Layout

NORM_PASSES = 10
"""Times that two norms and two sums of the residual read or write the hidden states."""


@dataclass(frozen=True)
class LayerKernels:
    """One layer on one rank. `products` are (outputs, inputs) of its weights as they are read;
    `passes` elements of activations that the small kernels move per token; `pair_flops` per
    query-key pair; `cached` elements of keys and values per cached token."""

    products: tuple[tuple[int, int], ...]
    passes: int
    pair_flops: int
    cached: int


@dataclass(frozen=True)
class RankKernels:
    """The layers of a rank's stage and how many are alike; rows and columns of its part of the
    head, and whether that is the embedding's table as well (which isn't packed)."""

    layers: tuple[tuple[LayerKernels, int], ...]
    head: tuple[int, int] | None
    shared_head: bool


def rank_kernels(layout: Layout, rank: int) -> RankKernels:
    at = layout.degrees.coordinates(rank)
    stage, spec = layout.stages[at.pp], layout.spec
    alike = Counter(spec.alike[i] for i in stage.layers)
    layers = tuple((_layer(layout, spec.blocks[i], at), count) for i, count in alike.items())
    head = (layout.vocabulary(at.pp)[at.tp].size, spec.hidden) if stage.head else None
    return RankKernels(layers, head, stage.embedding and spec.tied_head)


def _layer(layout: Layout, block: Block, at: Coordinates) -> LayerKernels:
    """q, k and v are one product, gate and up another (sharding/weights.py)."""
    hidden, dim = layout.spec.hidden, block.attention.head_dim
    heads = layout.rank_heads(block.attention, at)
    queries, keys = len(heads.queries) * dim, len(heads.kv) * dim
    columns = layout.columns(block.feed_forward.width, at).size
    wide = 2 if block.feed_forward.gated else 1
    return LayerKernels(
        products=(
            (queries + 2 * keys, hidden),
            (hidden, queries),
            (wide * columns, hidden),
            (hidden, columns),
        ),
        # Norms and sums, rotary, activation: read and written.
        passes=NORM_PASSES * hidden + 4 * (queries + keys) + (wide + 1) * columns,
        pair_flops=4 * queries,
        cached=2 * keys,
    )
