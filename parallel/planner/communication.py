"""The collectives of one step, counted in closed form: what the ledger must find afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.layout.layout import Layout
from parallel.planner.formats import Formats


@dataclass(frozen=True)
class Collective:
    """`calls` of one operation in a step. `full_bytes` of the array; `sent_bytes` by one rank in
    each call, padding included."""

    axis: str
    op: str
    layer: str
    calls: int
    full_bytes: int
    sent_bytes: int


def splits_tokens(tokens: int, ranks: int, split_tokens: int | None) -> bool:
    """Whether the `ranks` of a stage split a step's tokens (sequence parallelism), given the least
    number for which they do. An uneven split isn't made: its sums stay all-reduces."""
    return ranks > 1 and split_tokens is not None and tokens >= split_tokens and tokens % ranks == 0


def step_collectives(
    layout: Layout,
    rank: int,
    formats: Formats,
    tokens: int,
    rows: int,
    split_tokens: int | None = None,
) -> list[Collective]:
    """Of one rank in a step of `tokens`, `rows` of them sampled. An all-reduce sends
    2(t-1)/t of its array in a ring, a reduce-scatter half of that, an all-gather (t-1) times its
    padded piece."""
    spec, at = layout.spec, layout.degrees.coordinates(rank)
    t, stage = layout.degrees.tp_of(at.pp), layout.stages[at.pp]
    size = tokens * spec.hidden * formats.compute.bytes
    found: list[Collective] = []
    if t > 1:
        layers = len(stage.layers)
        kinds = [("attention", layers), ("ffn", layers)]
        if stage.embedding:
            kinds.insert(0, ("embedding", 1))
        sent = 2 * (t - 1) * size // t
        if splits_tokens(tokens, t, split_tokens):
            found += [Collective("tp", "reduce_scatter", k, n, size, sent // 2) for k, n in kinds]
            kinds = [("attention", layers), ("ffn", layers), ("stage", 1)]
            piece = size // t
            found += [Collective("tp", "all_gather", k, n, size, (t - 1) * piece) for k, n in kinds]
        else:
            found += [Collective("tp", "all_reduce", k, n, size, sent) for k, n in kinds]
        if stage.head and rows:
            piece = rows * max(p.size for p in layout.vocabulary(at.pp)) * 4
            found.append(Collective("tp", "all_gather", "logits", 1, piece * t, (t - 1) * piece))
    receivers = len(layout.degrees.receivers(rank))
    if receivers:
        found.append(Collective("pp", "send", "stage", receivers, size, size))
    return found


def called_among(found: Collective, layout: Layout, rank: int) -> list[tuple[int, tuple[int, ...]]]:
    """How many of a rank's calls go among which ranks: each send is between two."""
    if found.op == "send":
        return [(1, (rank, to)) for to in layout.degrees.receivers(rank)]
    return [(found.calls, layout.degrees.group(found.axis, rank))]
