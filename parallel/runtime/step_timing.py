"""What the engine takes for a step beside the layers: a model that is next to nothing, really run.

Scheduling, the message to the ranks, inputs, sampling's start and answers are host work. Ranks that
wait for a message are woken late: what the leader then waits for in its first collective is a
step's cost too.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Any

from parallel.calibration.bench import MOST_BUDGETS, Peers
from parallel.calibration.overheads import StepPoint
from parallel.hardware.facts import Cluster
from parallel.layout.degrees import Degrees
from parallel.planner.plan import Plan
from parallel.requests.types import Sampling
from parallel.requests.wire import event_from_wire
from parallel.runtime.job import RankJob
from parallel.runtime.meter import Meter
from parallel.runtime.rehearsal import Geometry, random_plan

SEQUENCES = (1, 4, 16)
_LEAST_REPEATS, _MOST_REPEATS = 2, 5
_PROMPT_TOKENS = 8
_NEW_TOKENS = 24
_HEAD_DIM = 64


def step_plan(ranks: int, cluster: Cluster) -> Plan:
    """One small layer over all ranks."""
    geometry = Geometry(_HEAD_DIM, ranks, ranks, _HEAD_DIM * ranks)
    return random_plan(geometry, 1, _HEAD_DIM * ranks, Degrees(tp=ranks), cluster)


class Prompts:
    """A router's channel in memory: equal requests, there from the start."""

    def __init__(self, count: int):
        sampling = Sampling(max_tokens=_NEW_TOKENS, ignore_eos=True).to_wire()
        self._inbox = deque(
            {"type": "submit", "id": i, "prompt": [1] * _PROMPT_TOKENS, "sampling": sampling}
            for i in range(count)
        )
        self._left = count

    def poll(self, timeout: float | None = 0.0) -> bool:
        return bool(self._inbox) or self._left == 0

    def receive(self) -> dict[str, Any]:
        return self._inbox.popleft() if self._inbox else {"type": "stop"}

    def send(self, message: dict[str, Any]) -> None:
        events = map(event_from_wire, message.get("events", ()))
        self._left -= sum(e.finish_reason is not None for e in events)


def measure_steps(
    job: RankJob, peers: Peers, budget_seconds: float, advance: Callable[[float], None]
) -> list[StepPoint]:
    """What the leader saw; empty on its followers. `job` is of `step_plan`, all its ranks call.

    Between hosts a step takes long: where the budget is spent, fewer repeats do."""
    meter = Meter(job.device)
    model = job.worker.model
    (block,) = model.blocks
    for owner, attribute in (
        (model, "embedding"),
        (block, "attention"),
        (block, "feed_forward"),
        (model, "logits"),
    ):
        meter.watch(owner, attribute, attribute)
    meter.on = job.is_leader
    found: list[list[float]] = [[] for _ in SEQUENCES]
    began = time.monotonic()
    for repeat in range(_MOST_REPEATS):
        in_time = time.monotonic() - began < MOST_BUDGETS * budget_seconds
        if not peers.agree(repeat < _LEAST_REPEATS or in_time):
            advance(1 - repeat / _MOST_REPEATS)
            break
        for sequences, seconds in zip(SEQUENCES, found, strict=True):
            peers.align()
            job.worker.sequences.states.clear()
            if job.is_leader:
                seconds.append(_run(job, meter, sequences))
            else:
                job.follow()
        advance(1 / _MOST_REPEATS)
    if not job.is_leader:
        return []
    return [StepPoint(n, median(seconds)) for n, seconds in zip(SEQUENCES, found, strict=True)]


def _run(job: RankJob, meter: Meter, sequences: int) -> float:
    """Seconds of a decode step beside what the meter saw of the model."""
    job.ledger.reset()
    job.clock.counts.clear()
    job.lead(Prompts(sequences))
    counts = [c for shape, c in job.clock.counts.items() if shape.phase == "decode"]
    steps, whole = sum(c.steps for c in counts), sum(c.seconds for c in counts)
    # All prompts are computed in the first step.
    model = sum(sum(calls[1:]) for calls in meter.take().values())
    return max(0.0, (whole - model) / steps) + _late_seconds(job)


def _late_seconds(job: RankJob) -> float:
    """What the first collective of a step takes longer than the last one, where all are awake."""
    job.mesh.tp.resolve()
    seconds = {
        row["layer"]: row["seconds"] / row["calls"]
        for row in job.ledger.rows(job.rank)
        if row["phase"] == "decode" and row["op"] == "all_reduce"
    }
    if "embedding" not in seconds:
        return 0.0
    return max(0.0, float(seconds["embedding"] - seconds["ffn"]))
