"""Live tensors of attention: rotary positions, masks, gathered cache, the kernel's own.

T tokens of the step. Follows kernels/rotary.py and kernels/attention.py operator by operator; the
native kernels (kernels/attention_native.py, elementwise_native.py) make their results alone.
"""

from __future__ import annotations

from parallel.architecture.spec import Rotary
from parallel.planner.tape import BlockShape, StepShape, Tape

GATHER_TOKENS = 32768
"""Context tokens that a decode gathers at most at once (kernels/attention.py keeps to it)."""
_INDEX, _FLOAT, _BOOL, _SCALE = 8, 4, 1, 2
_VECTOR = 16


def rotate(tape: Tape, facts: Rotary, tokens: int, heads: int, head_dim: int) -> int:
    """Of [T, heads, head_dim]; returns the bytes of the result."""
    if tape.first(facts):
        _rotary_tables(tape, tokens, facts.dim)
    size = tokens * heads * facts.dim * tape.width
    product = tape.take(size)
    half = tape.take(size // 2)
    crossed = tape.take(size)
    tape.give(half)
    result = tape.take(size)
    tape.give(product, crossed)
    if facts.dim < head_dim:
        whole = tape.take(tokens * heads * head_dim * tape.width)
        tape.give(result)
        return whole
    return result


def _rotary_tables(tape: Tape, tokens: int, dim: int) -> None:
    """cos and sin [T, dim], computed in float32."""
    positions = tape.take(tokens * _FLOAT)
    angles = tape.take(tokens * dim // 2 * _FLOAT)
    tape.give(positions)
    both = tape.take(tokens * dim * _FLOAT)
    for _ in ("cos", "sin"):
        wave = tape.take(tokens * dim * _FLOAT)
        scaled = tape.take(tokens * dim * _FLOAT)
        tape.give(wave)
        if tape.width != _FLOAT:
            tape.take(tokens * dim * tape.width)
            tape.give(scaled)
    tape.give(angles, both)


def waves(tape: Tape, facts: Rotary, tokens: int) -> None:
    """cos and sin [T, dim / 2] of the native rotary positions, which turn heads where they lie."""
    if not tape.first(facts):
        return
    positions = tape.take(tokens * _FLOAT)
    angles = tape.take(tokens * (facts.dim // 2) * _FLOAT)
    tape.give(positions)
    tape.take(2 * angles)
    tape.give(angles)


def attend(tape: Tape, block: BlockShape, step: StepShape, page: int) -> int:
    """What attention makes of [T, queries, d]; `page` tokens per cache block."""
    heads, grid, parts = step.tokens * block.head_dim * tape.width, 0, []
    if tape.native_attention:
        if tape.first("query starts"):
            tape.take((len(step.chunks) + 1) * _INDEX)
        return tape.take(heads * block.queries)
    if tape.scaled_cache:
        _store(tape, step.tokens * block.keys, block.head_dim)
    if not block.uniform:
        grid = tape.take(heads * block.grid)
    if step.decodes:
        contexts = tuple(context for _, context in step.chunks[: step.decodes])
        parts.append(_decode(tape, block, contexts, page))
    for index, (tokens, context) in enumerate(step.chunks[step.decodes :]):
        parts.append(_prefill(tape, block, tokens, context, page, index))
    result = _joined(tape, parts)
    if not block.uniform:
        ordered = tape.take(heads * block.queries)
        tape.give(result, grid)
        return ordered
    return result


def _decode(tape: Tape, block: BlockShape, contexts: tuple[int, ...], page: int) -> int:
    """As many decodes at once as may be gathered."""
    rows, heads = len(contexts), block.keys * block.group
    first = min(_begin(block, c) for c in contexts) // page
    pages = -(-max(contexts) // page) - first
    if rows == 1 and block.window is not None:
        # As the window may lie: a page more or less shouldn't depend on the context.
        pages = min(-(-contexts[0] // page), -(-(block.window - 1) // page) + 1)
    span = pages * page
    most = max(1, GATHER_TOKENS // span)
    if rows > 1:
        _mask(tape, ("decode", block.window), rows, span, block.window)
    whole, rest = divmod(rows, most)
    # Gathers of one size take and leave the same: of them the last has most beside it.
    before = max(0, whole - 1)
    parts = [tape.take(before * most * heads * block.head_dim * tape.width)] if before else []
    for count in [most] * (whole - before) + [rest] * (rest > 0):
        gathered = _gather(tape, block, count * span, count * pages)
        result = _scaled_dot_product(
            tape, count * heads, block.head_dim, 0 if rows == 1 else count * span
        )
        if block.keys > 1 and block.group > 1:
            # The kernel's result lies by queries, then by heads: bringing it in order copies.
            tape.take(result)
            tape.give(result)
        tape.give(gathered)
        parts.append(result)
    return _joined(tape, parts)


def _begin(block: BlockShape, context: int) -> int:
    return 0 if block.window is None else max(0, context - block.window)


def _prefill(
    tape: Tape, block: BlockShape, tokens: int, context: int, page: int, index: int
) -> int:
    gathered = mask = 0
    if tokens != context:
        pages = -(-context // page)
        gathered = _gather(tape, block, pages * page, 0)
    if tokens != context or block.window is not None:
        _mask(tape, ("prefill", index, block.window), tokens, context, block.window)
        mask = tokens * context
        if tape.cuda and block.group > 1:
            # CUDA's kernels get as many KV heads as query heads, and a mask in whole vectors.
            gathered += tape.take(2 * context * block.grid * block.head_dim * tape.width)
            mask += tokens * -(-context // _VECTOR) * _VECTOR
    result = _scaled_dot_product(tape, tokens * block.grid, block.head_dim, mask)
    tape.give(gathered)
    return result


def _gather(tape: Tape, block: BlockShape, tokens: int, numbers: int) -> int:
    """Keys and values of cached tokens; `numbers` of blocks are copied when they lie with gaps."""
    vectors = tokens * block.keys
    one = vectors * block.head_dim * tape.width
    if tape.scaled_cache:
        numbers = tape.take(numbers * _INDEX)
        for _ in ("key", "value"):
            stored = tape.take(vectors * (block.head_dim + _SCALE))
            tape.take(one)
            tape.touch(vectors * tape.width)
            tape.give(stored)
        tape.give(numbers)
        return 2 * one
    for _ in ("key", "value"):
        tape.take(one)
        tape.touch(numbers * _INDEX)
    return 2 * one


def _store(tape: Tape, vectors: int, dim: int) -> None:
    """Keys, then values, in eight bits (kernels/cache_formats.py)."""
    norms = tape.take(vectors * tape.width)
    cast = tape.take(vectors * _FLOAT if tape.width != _FLOAT else 0)
    scales = tape.take(vectors * _SCALE)
    tape.give(cast)
    steps = tape.take(vectors * dim * _FLOAT)
    tape.touch(vectors * _FLOAT)
    stored = tape.take(vectors * dim)
    tape.give(norms, scales, steps, stored)


def _mask(tape: Tape, key: object, rows: int, length: int, window: int | None) -> None:
    """[rows, length], made by the first layer of a step and kept."""
    if not tape.first(key):
        return
    positions = tape.take(length * _INDEX)
    tape.take(rows * length * _BOOL)
    if window is not None:
        tape.touch(rows * _INDEX, rows * length * _BOOL)
    tape.give(positions)


def _scaled_dot_product(tape: Tape, queries: int, head_dim: int, mask: int) -> int:
    """`queries` of all heads; a boolean mask of `mask` elements is turned into numbers inside."""
    bias = tape.take(mask * tape.width)
    result = tape.take(queries * head_dim * tape.width)
    tape.touch(queries * _FLOAT)
    tape.give(bias)
    return result


def _joined(tape: Tape, parts: list[int]) -> int:
    if len(parts) == 1:
        return parts[0]
    whole = tape.take(sum(parts))
    tape.give(*parts)
    return whole
