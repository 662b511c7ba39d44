"""Bytes of a step's live tensors at the peak: a rank's stage on the tape, at the engine's limits.

`largest_steps` are the batches that the limits allow at most; warm-up runs the very same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from parallel.architecture.spec import Block
from parallel.hardware.facts import Cluster
from parallel.layout.degrees import Coordinates
from parallel.layout.layout import Layout
from parallel.planner import tape_attention
from parallel.planner.formats import Formats
from parallel.planner.limits import EngineLimits
from parallel.planner.memory import sends_through_memory, shares_memory
from parallel.planner.tape import BlockShape, StepShape, Tape
from parallel.planner.tape_layers import HeadShape, embed, logits, run_block

_NATIVE = ("bf16", "fp32")
"""What norms, activations, rotary positions and attention have native kernels for."""


LATE_ARRAYS = 2
"""Of one group: gloo works with two threads, and each may hold the last array that it summed."""


def kept_sends(batches: int) -> int:
    """Sends whose tensors a rank keeps until they have left (collectives/transport.py). None where
    they go through shared memory, which has taken them at once."""
    return max(2, 2 * batches)


@dataclass(frozen=True)
class StageShape:
    """A rank's stage: its distinct blocks in the order of their first, and how often each comes.

    `late`: what gloo has summed or gathered lives until its thread lets it go, which may be after
    its last use.
    Of earlier steps `sent` hidden states are kept at most. `on_host`: the host's memory is the
    device's. `native`, `native_attention` and `scaled_cache`: as a `Tape` has them. Stages whose
    facts are equal have equal peaks."""

    hidden: int
    width: int
    on_host: bool
    blocks: tuple[tuple[BlockShape, int], ...]
    embeds: bool
    splits: bool
    late: bool
    positions: bool
    sent: int
    head: HeadShape | None
    page: int
    native: bool = False
    native_attention: bool = False
    scaled_cache: bool = False


def stage_shape(
    layout: Layout, rank: int, formats: Formats, limits: EngineLimits, cluster: Cluster
) -> StageShape:
    spec, degrees = layout.spec, layout.degrees
    at, stage = degrees.coordinates(rank), layout.stage(rank)
    held = Counter(spec.blocks[i] for i in stage.layers)
    blocks: Counter[BlockShape] = Counter()
    for block, count in held.items():
        blocks[_block_shape(layout, block, at)] += count
    shared_memory = shares_memory(layout, rank, cluster)
    on_host = cluster.device(rank).type.kind == "cpu"
    late = on_host and degrees.tp_of(at.pp) > 1 and not shared_memory
    head = None
    if stage.head:
        rows = [piece.size for piece in layout.vocabulary(at.pp)]
        head = HeadShape(
            local=rows[at.tp],
            widest=max(rows),
            vocabulary=spec.vocabulary,
            ranks=len(rows),
            shared_memory=shared_memory,
            late=late,
            samples=at.tp == 0,
            rms=spec.final_norm.kind == "rms",
        )
    native = limits.native(cluster.device(rank).type) and formats.weights.name in _NATIVE
    in_ring = sends_through_memory(layout, rank, cluster, limits)
    keeps = bool(degrees.receivers(rank)) and not in_ring
    return StageShape(
        hidden=spec.hidden,
        width=formats.compute.bytes,
        on_host=on_host,
        blocks=tuple(blocks.items()),
        embeds=stage.embedding,
        splits=degrees.tp_of(at.pp) > 1,
        late=late,
        positions=spec.positions is not None,
        sent=kept_sends(limits.batches or degrees.pp) if keeps else 0,
        head=head,
        page=limits.block_tokens,
        scaled_cache=formats.kv_cache.scale_bytes > 0,
        native=native,
        native_attention=native
        and limits.attention in ("auto", "native")
        and formats.kv_cache == formats.compute,
    )


def _block_shape(layout: Layout, block: Block, at: Coordinates) -> BlockShape:
    attention, feed_forward = block.attention, block.feed_forward
    heads = layout.rank_heads(attention, at)
    return BlockShape(
        rms=block.norm.kind == "rms",
        queries=len(heads.queries),
        keys=len(heads.kv),
        group=heads.group,
        uniform=heads.uniform,
        head_dim=attention.head_dim,
        window=attention.window,
        qk_norm=attention.qk_norm,
        rotary=attention.rotary,
        columns=layout.columns(feed_forward.width, at).size,
        gated=feed_forward.gated,
        activation=feed_forward.activation,
    )


def in_time(stage: StageShape) -> StageShape:
    """The same when gloo's thread lets everything go at once."""
    head = None if stage.head is None else replace(stage.head, late=False)
    return replace(stage, late=False, head=head)


@lru_cache(maxsize=4096)
def step_bytes(stage: StageShape, step: StepShape) -> int:
    """The peak of live tensors in one step: nothing that was there before it."""
    tape = Tape(
        stage.width,
        not stage.on_host,
        stage.native,
        stage.native_attention,
        stage.scaled_cache,
    )
    size = step.tokens * stage.hidden * stage.width
    late = tape.take(LATE_ARRAYS * size if stage.late else 0)
    if stage.embeds:
        embed(tape, step.tokens, stage.hidden, stage.splits, stage.positions)
    else:
        tape.take(size)
    distinct, branch = [block for block, _ in stage.blocks], 0
    again = any(count > 1 for _, count in stage.blocks)
    for block in distinct * (2 if again else 1):
        branch = run_block(tape, stage.hidden, block, step, stage.page, branch)
    tape.give(branch)
    if stage.head is not None and step.rows:
        logits(tape, stage.hidden, stage.head, step.rows, late)
    return tape.peak_bytes


def largest_steps(limits: EngineLimits, context_tokens: int, batches: int) -> tuple[StepShape, ...]:
    """The batches that take most, for sequences of up to `context_tokens`: as many decodes as
    there may be, a prompt's last chunk, one beside a single decode and one beside many.

    Every sequence may have a chunk in a batch (one token of a prompt is shaped like a decode), but
    each batch samples no more than its share of them."""
    context = max(1, context_tokens - 1)
    most = min(limits.step_tokens, limits.requests)
    rows = min(limits.step_tokens, -(-limits.requests // batches))
    steps = [
        _step(limits.step_tokens, context, most, rows, decodes, longest, cached)
        for decodes in (0, 1, most - 1, most)
        for longest in (context - 1, context)
        for cached in {context, _fullest(context, most, limits.block_tokens)}
    ]
    return tuple(dict.fromkeys(s for s in steps if s.chunks))


def _step(
    tokens: int, context: int, most: int, rows: int, decodes: int, longest: int, cached: int
) -> StepShape:
    """`decodes` of contexts `cached` (beside a short one, all of the context is gathered, whatever
    the window), and chunks of prompts on what is left of the tokens, all at the full context. A
    chunk that is its whole prompt needs no mask and no cache, but there may be more of it."""
    decodes = max(0, min(decodes, most, tokens))
    chunks, left = [(1, cached)] * decodes, tokens - decodes
    if decodes > 1:
        chunks[0] = (1, 1)
    while min(left, longest) > 1 and len(chunks) < most:
        chunks.append((min(left, longest), context))
        left -= chunks[-1][0]
    return StepShape(tuple(chunks), min(rows, len(chunks)))


def _fullest(context: int, rows: int, page: int) -> int:
    """The context whose decodes fill a gather best: contexts a little shorter than the longest may
    leave room for one more of them."""
    pages = max(1, tape_attention.GATHER_TOKENS // page)
    longest = -(-context // page)
    count = min(rows, -(-pages // longest))
    return min(context, max(1, pages // count) * page)


def buffer_bytes(stage: StageShape, limits: EngineLimits, context_tokens: int, batches: int) -> int:
    """What a rank holds all the time beside weights and cache: a set of input buffers for each
    batch in flight (runtime/inputs.py), and what rotary positions and uneven heads keep."""
    sequences = min(limits.requests, limits.step_tokens)
    pages = -(-context_tokens // limits.block_tokens)
    numbers = 3 * limits.step_tokens + sequences * (2 + pages)
    constants = 0
    for shape, count in stage.blocks:
        constants += 0 if shape.rotary is None else count * 4 * (shape.rotary.dim // 2)
        constants += 0 if shape.uniform else count * 8 * shape.queries
    return 8 * numbers * batches + constants


def peak_bytes(
    stage: StageShape,
    steps: Sequence[StepShape],
    limits: EngineLimits,
    context_tokens: int,
    batches: int,
) -> int:
    """The most that a rank holds beside weights and cache while it runs such `steps`."""
    kept = stage.sent * max(s.tokens for s in steps) * stage.hidden * stage.width
    standing = buffer_bytes(stage, limits, context_tokens, batches)
    return standing + kept + max(step_bytes(stage, s) for s in steps)


def activation_bytes(
    stage: StageShape, limits: EngineLimits, context_tokens: int, batches: int
) -> int:
    """The same at the engine's limits, with sequences of up to `context_tokens`."""
    steps = largest_steps(limits, context_tokens, batches)
    return peak_bytes(stage, steps, limits, context_tokens, batches)


def typical_layers(layout: Layout, rank: int) -> list[int]:
    """Layers of the rank's stage whose run has the peak of the whole: the first of each kind, and
    the last of each once more where a kind comes again."""
    at = layout.degrees.coordinates(rank)
    first: dict[BlockShape, int] = {}
    last: dict[BlockShape, int] = {}
    layers = layout.stage(rank).layers
    for i in layers:
        shape = _block_shape(layout, layout.spec.blocks[i], at)
        first.setdefault(shape, i)
        last[shape] = i
    found = list(first.values())
    return found + [last[shape] for shape in first] if len(layers) > len(found) else found
