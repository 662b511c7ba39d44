"""Live tensors of everything but attention's inside: norms, a block, embedding, logits, sampling.

T tokens, h hidden, R rows to sample, V vocabulary. Follows models/transformer.py operator by
operator: arguments live as long as the call that they were given to.
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.planner.tape import BlockShape, StepShape, Tape
from parallel.planner.tape_attention import attend, rotate, waves

NATIVE_ACTIVATIONS = ("silu", "gelu_tanh")
"""Of which there are native kernels (kernels/elementwise_native.py)."""
_INDEX, _FLOAT, _DOUBLE, _BOOL = 8, 4, 8, 1


def norm(tape: Tape, rows: int, width: int, rms: bool) -> int:
    """Of [rows, width]; returns the bytes of the result. The operators of an RMS norm are those of
    CPU; where CUDA has one kernel for it, that takes less."""
    size = rows * width
    if tape.native:
        return tape.take(size * tape.width)
    if not rms:
        result = tape.take(size * tape.width)
        tape.touch(2 * rows * (_FLOAT if tape.cuda else tape.width))
        return result
    cast = tape.take(0 if tape.width == _FLOAT else size * _FLOAT)
    squares = tape.take(size * _FLOAT, rows * _FLOAT)
    root = tape.take(rows * _FLOAT)
    tape.give(squares)
    scaled = tape.take(size * _FLOAT)
    result = tape.take(size * _FLOAT)
    tape.give(scaled, cast)
    if tape.width != _FLOAT:
        rounded = tape.take(size * tape.width)
        tape.give(result)
        result = rounded
    tape.give(root)
    return result


def run_block(
    tape: Tape, hidden: int, block: BlockShape, step: StepShape, page: int, branch: int
) -> int:
    """The residual [T, h] is the caller's and lives on; `branch` are the bytes of what isn't added
    to it yet, here and in the result."""
    normed = norm(tape, step.tokens, hidden, block.rms)
    tape.give(branch)
    branch = _attention(tape, hidden, block, step, page)
    tape.give(normed)
    normed = norm(tape, step.tokens, hidden, block.rms)
    tape.give(branch)
    branch = _feed_forward(tape, step.tokens, hidden, block)
    tape.give(normed)
    return branch


def _attention(tape: Tape, hidden: int, block: BlockShape, step: StepShape, page: int) -> int:
    tokens, queries, keys, dim = step.tokens, block.queries, block.keys, block.head_dim
    projected = tape.take(tokens * (queries + 2 * keys) * dim * tape.width)
    mixed = 0
    if block.qk_norm:
        normed = norm(tape, tokens * queries, dim, block.rms)
        normed += norm(tape, tokens * keys, dim, block.rms)
        mixed = tape.take(normed)
        tape.give(normed)
    if block.rotary is not None:
        if tape.native:
            waves(tape, block.rotary, tokens)
        else:
            rotated = rotate(tape, block.rotary, tokens, queries + keys, dim)
            tape.give(mixed)
            mixed = rotated
    attended = attend(tape, block, step, page)
    result = tape.take(tokens * hidden * tape.width)
    tape.give(attended, mixed, projected)
    return result


def _feed_forward(tape: Tape, tokens: int, hidden: int, block: BlockShape) -> int:
    one = tokens * block.columns * tape.width
    wide = tape.take(one * (2 if block.gated else 1))
    active = tape.take(one)
    if block.gated and not (tape.native and block.activation in NATIVE_ACTIVATIONS):
        product = tape.take(one)
        tape.give(active)
        active = product
    tape.give(wide)
    result = tape.take(tokens * hidden * tape.width)
    tape.give(active)
    return result


def embed(tape: Tape, tokens: int, hidden: int, split: bool, positions: bool) -> int:
    """[T] → [T, h]; `split`: each rank looks up its own rows and the sum has them all."""
    result = 0
    if split:
        mask = tape.take(tokens * _BOOL)
        local = tape.take(tokens * _INDEX)
        tape.touch(2 * tokens * _BOOL)
        clamped = tape.take(tokens * _INDEX)
        found = tape.take(tokens * hidden * tape.width)
        tape.give(clamped)
        result = tape.take(found)
        tape.give(found, local, mask)
    else:
        result = tape.take(tokens * hidden * tape.width)
    if positions:
        tape.touch(result)
    return result


@dataclass(frozen=True)
class HeadShape:
    """Vocabulary rows of this rank, of the rank that has most, and of all `ranks` of the axis.
    `shared_memory` says how they are gathered, `late` whether what was sent may live on after it;
    `samples`, whether this rank draws the tokens."""

    local: int
    widest: int
    vocabulary: int
    ranks: int
    shared_memory: bool
    late: bool
    samples: bool
    rms: bool


def logits(tape: Tape, hidden: int, head: HeadShape, rows: int, late: int) -> None:
    """[R, h] → [R, V] float32, and the tokens. They are drawn when all else of the step is gone
    but `late` bytes."""
    picked = tape.take(rows * hidden * tape.width)
    norm(tape, rows, hidden, head.rms)
    tape.give(picked)
    # Of odd inputs there is no native product.
    direct = tape.cuda or (tape.native and hidden % 2 == 0)
    result = tape.take(rows * head.local * (_FLOAT if direct else tape.width))
    if tape.width != _FLOAT and not direct:
        wide = tape.take(rows * head.local * _FLOAT)
        tape.give(result)
        result = wide
    staged = 0
    if head.ranks > 1:
        if not head.shared_memory:
            staged = tape.take((1 + head.ranks) * rows * head.widest * _FLOAT)
        whole = tape.take(rows * head.vocabulary * _FLOAT)
        tape.give(result)
        result = whole
        if not head.late:
            tape.give(staged)
            staged = 0
    if head.samples:
        tape.give(tape.live_bytes - result - staged - late)
        _sample_row(tape, head.vocabulary)
        tape.touch(rows * _INDEX)


def _sample_row(tape: Tape, vocabulary: int) -> None:
    """One row with everything asked for (kernels/sampling.py, kernels/noise.py): penalties,
    temperature, the sorted copy with its ids, what top-p keeps, noise in 64 bits."""
    adjusted = tape.take(vocabulary * _FLOAT)
    scaled = tape.take(vocabulary * _FLOAT)
    kept = tape.take(vocabulary * (_FLOAT + _INDEX))
    before = tape.take(vocabulary * _FLOAT)
    double = tape.take(vocabulary * _DOUBLE)
    tape.touch(3 * vocabulary * _INDEX)
    tape.give(adjusted, scaled, kept, before, double)
