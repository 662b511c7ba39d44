"""Graphs of decode steps on CUDA: the sizes that are captured, and the memory that they take.

A graph replays kernels with the same arguments, so each size of a batch has its own and smaller
batches are filled up. Rows without a sequence write to a block of the cache that no sequence has.
"""

from __future__ import annotations

from typing import NamedTuple

from parallel.planner.activations import StageShape, step_bytes
from parallel.planner.limits import EngineLimits
from parallel.planner.tape import StepShape
from parallel.units import KIB

_FLOAT = 4
_LAYER_BYTES = 96 * KIB
"""What the driver keeps of one layer of one graph. A guess; a run says what its graphs took."""
_NARROWEST_BLOCKS = 8


class GraphSize(NamedTuple):
    """`rows` of the batch, `blocks` of each row's table."""

    rows: int
    blocks: int


def most_rows(limits: EngineLimits, batches: int) -> int:
    """Decodes in one batch of a pipeline with so many in flight."""
    return min(limits.step_tokens, -(-limits.requests // batches))


def graph_sizes(rows: int, blocks: int, in_place: bool) -> tuple[GraphSize, ...]:
    """Of batches up to `rows`: powers of two, and the most. Attention that reads the cache
    `in_place` costs what contexts are long, whatever the table's width; what gathers gets tables
    of several widths, each four times the one before. Ascending."""
    heights = {*(1 << i for i in range(rows.bit_length()) if 1 << i < rows), rows}
    widths = {blocks}
    while not in_place and min(widths) > _NARROWEST_BLOCKS:
        widths.add(-(-min(widths) // 4))
    return tuple(GraphSize(r, w) for r in sorted(heights) for w in sorted(widths))


def captures(on_cuda: bool, limits: EngineLimits) -> bool:
    return on_cuda and limits.cuda_graphs


def spare_blocks(on_cuda: bool, limits: EngineLimits) -> int:
    """Blocks of the cache beside those that sequences get."""
    return int(captures(on_cuda, limits))


def buffer_bytes(stage: StageShape, rows: int) -> int:
    """What graphs read and write in the same place each time, beside the step's input buffers:
    hidden states that came and go, or logits in float32."""
    hidden = rows * stage.hidden * stage.width
    received = 0 if stage.embeds else hidden
    result = hidden if stage.head is None else rows * stage.head.vocabulary * _FLOAT
    return received + result


def graph_bytes(stage: StageShape, limits: EngineLimits, context_tokens: int, batches: int) -> int:
    """An estimate: buffers, the largest graph's tensors, and the driver's part of each graph."""
    if not captures(not stage.on_host, limits):
        return 0
    rows = most_rows(limits, batches)
    blocks = -(-context_tokens // limits.block_tokens)
    tensors = step_bytes(stage, StepShape(((1, context_tokens),) * rows, rows))
    layers = sum(count for _, count in stage.blocks)
    sizes = len(graph_sizes(rows, blocks, in_place=True))
    driver = sizes * batches * layers * _LAYER_BYTES
    return buffer_bytes(stage, rows) + tensors + driver
