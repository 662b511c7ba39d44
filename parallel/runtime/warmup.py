"""The largest batches that the limits allow, run once before serving.

Every buffer is touched, every kernel chosen, and the activations' peak is measured for the report.
The context is short, so that starting stays quick: what a long one adds is in the prediction alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from parallel.devices.base import Device
from parallel.requests.types import Sampling
from parallel.runtime.activations import LiveTensors
from parallel.runtime.sequences import Chunk, StepMessage
from parallel.runtime.worker import Worker


def warm_up(worker: Worker, device: Device) -> int:
    """Runs the largest prefill chunk and the largest decode batch; bytes of live tensors at the
    peak, weights and cache excluded. All ranks of a replica must call it at once."""
    device.reset_peak()
    before = device.memory_statistics().allocated_bytes
    with LiveTensors() as live:
        for message in _messages(worker):
            worker.run(message)
    worker.mesh.pp.flush()
    device.synchronize()
    worker.sequences.states.clear()
    if device.kind == "cuda":
        return device.memory_statistics().peak_allocated_bytes - before
    return int(live.peak_bytes)


def _messages(worker: Worker) -> Iterator[StepMessage]:
    plan = worker.plan
    context, blocks = plan.context_tokens, plan.blocks
    length = min(plan.limits.step_tokens, context - 1)
    rows = min(plan.limits.requests, plan.limits.step_tokens)
    per_sequence = -(-context // plan.limits.block_tokens)
    table = [i % blocks for i in range(per_sequence)]
    greedy = Sampling().to_wire()
    prompt = [0] * length
    yield StepMessage(
        serial=0,
        phase="warmup",
        tokens=[],
        left=[],
        joined=[(0, prompt, table, greedy)],
        chunks=[Chunk(0, 0, length, True)],
    )
    yield StepMessage(
        serial=1,
        phase="warmup",
        tokens=[],
        left=[0],
        joined=[(i + 1, [0] * length, table, greedy) for i in range(rows)],
        chunks=[Chunk(i + 1, length - 1, 1, True) for i in range(rows)],
    )
