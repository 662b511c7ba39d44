"""The largest batches that the limits allow, run once before serving.

First a prompt chunk and a decode batch through all layers, so that every buffer is touched and
every kernel chosen. Then the batches that take most memory, through one layer of each kind (and
once more, where a kind comes again): their peak is that of the whole stage, and they are the
batches that the plan has priced. Graphs of decodes are captured last: what they take is beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from parallel.devices.base import Device
from parallel.planner.activations import (
    StageShape,
    kept_sends,
    largest_steps,
    peak_bytes,
    stage_shape,
    step_bytes,
    typical_layers,
)
from parallel.planner.plan import Plan
from parallel.planner.tape import StepShape
from parallel.requests.types import Sampling
from parallel.runtime.activations import LiveTensors
from parallel.runtime.sequences import Chunk, StepMessage
from parallel.runtime.worker import Worker

_SECONDS = 1.5
"""About as long as the largest batches may take; beyond it their context is cut."""
_ATTENTION_SHARE = 0.1
"""Of a device's arithmetic, what attention with a mask reaches at the least."""
_GREEDY = Sampling()
_EVERYTHING = Sampling(
    temperature=100.0, top_p=0.9999999, repetition_penalty=1.1, presence_penalty=0.5
)
"""So hot that top-p keeps (nearly) all of the vocabulary, whatever the weights."""


@dataclass(frozen=True)
class Peak:
    """Bytes of live tensors beside weights and cache: `predicted` is for the batches that were
    `measured`, which are the plan's own unless they would have taken too long."""

    measured: int
    predicted: int


def warm_up(
    worker: Worker, device: Device, captured: Callable[[int], None] = lambda _: None
) -> Peak:
    """All ranks of a replica must call it at once; `captured` hears of each graph."""
    plan = worker.plan
    for shape in (_fresh_step(plan), _decode_step(plan)):
        run_shape(worker, shape)
    peak = measure_peak(worker, device)
    worker.capture(captured)
    return peak


def measure_peak(worker: Worker, device: Device) -> Peak:
    """All ranks of a replica must call it at once."""
    plan = worker.plan
    steps = _affordable_steps(plan, worker.rank)
    if plan.layout.degrees.pp > 1:
        # What is sent is kept until later sends: the steps before are as large as they may be.
        steps = (*[_fresh_step(plan)] * kept_sends(plan.batches), *steps)
    _settle(worker, device)
    device.reset_peak()
    # On CUDA the allocator sees more, and an operator taken apart isn't what will run.
    tracker = nullcontext() if device.kind == "cuda" else LiveTensors()
    with _only(worker, typical_layers(plan.layout, worker.rank)), tracker as live:
        for shape in steps:
            run_shape(worker, shape)
    _settle(worker, device)
    stage = stage_shape(plan.layout, worker.rank, plan.formats, plan.limits, plan.cluster)
    predicted = peak_bytes(stage, steps, plan.limits, plan.context_tokens, plan.batches)
    if live is None:
        held = worker.weights.bytes + worker.cache.bytes + worker.mover.staging_bytes
        return Peak(device.memory_statistics().peak_allocated_bytes - held, predicted)
    return Peak(live.peak_bytes + worker.standing_bytes, predicted)


def _settle(worker: Worker, device: Device) -> None:
    worker.mesh.pp.flush()
    device.synchronize()


@contextmanager
def _only(worker: Worker, layers: Sequence[int]) -> Iterator[None]:
    """The model with these layers alone: what it computes meanwhile is of no use."""
    whole = worker.model.blocks
    by_number = {block.layer: block for block in whole}
    worker.model.blocks = [by_number[i] for i in layers]
    try:
        yield
    finally:
        worker.model.blocks = whole


def _fresh_step(plan: Plan) -> StepShape:
    """Whole prompts, as many tokens as a step takes."""
    short = min(plan.context_tokens, plan.limits.step_tokens + 1)
    steps = largest_steps(plan.limits, short, plan.batches)
    return max(steps, key=lambda s: (s.tokens, -len(s.chunks), s.chunks[0][0]))


def _decode_step(plan: Plan) -> StepShape:
    return max(largest_steps(plan.limits, 2, plan.batches), key=lambda s: s.decodes)


def _affordable_steps(plan: Plan, rank: int) -> tuple[StepShape, ...]:
    """The steps with the highest peak on some rank of the replica: all of its ranks run the same.
    The context is halved until they don't take too long."""
    replica = plan.layout.degrees.replica(plan.layout.degrees.coordinates(rank).dp)
    stages = {
        r: stage_shape(plan.layout, r, plan.formats, plan.limits, plan.cluster) for r in replica
    }
    context = plan.context_tokens
    while True:
        steps = largest_steps(plan.limits, context, plan.batches)
        highest = {max(steps, key=partial(step_bytes, stage)) for stage in stages.values()}
        chosen = tuple(s for s in steps if s in highest)
        seconds = max(_attention_seconds(plan, r, g, chosen) for r, g in stages.items())
        if seconds <= _SECONDS or context <= 2 * plan.limits.step_tokens:
            return chosen
        context //= 2


def _attention_seconds(
    plan: Plan, rank: int, stage: StageShape, steps: Sequence[StepShape]
) -> float:
    channels = sum(block.grid * block.head_dim for block, _ in stage.blocks)
    pairs = sum(count * context for s in steps for count, context in s.chunks)
    rate = plan.cluster.device(rank).type.effective_flops_per_second(plan.formats.compute.name)
    return 2 * 4 * pairs * channels / (_ATTENTION_SHARE * rate)


def run_shape(worker: Worker, shape: StepShape) -> None:
    """Zeros at the places of `shape`; the first row that samples asks for everything. Sequences
    share as few blocks as hold a step's tokens: a context costs no pages of the cache."""
    limits = worker.plan.limits
    few = min(worker.plan.blocks, -(-limits.step_tokens // limits.block_tokens))
    joined, chunks = [], []
    for i, (count, context) in enumerate(shape.chunks):
        table = [b % few for b in range(-(-context // limits.block_tokens))]
        sampling = _GREEDY if i else _EVERYTHING
        joined.append((i, [0] * context, table, sampling.to_wire()))
        chunks.append(Chunk(i, context - count, count, i < shape.rows))
    worker.run(StepMessage(0, "warmup", [], [], joined, chunks))
    worker.sequences.states.clear()
