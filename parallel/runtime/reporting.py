"""What a rank measured, and the report of a replica."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parallel.instrument.clock import StepClock
from parallel.instrument.stamps import from_wire
from parallel.instrument.trace import RankTrace, trace_document
from parallel.instrument.waits import split_waits
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.memory import kv_bytes_per_token, weight_bytes
from parallel.planner.plan import Plan
from parallel.planner.timing import StepModel
from parallel.planner.work import mean_work
from parallel.report.report import build_report
from parallel.runtime.warmup import Peak
from parallel.runtime.worker import Worker

Json = dict[str, Any]


def rank_report(worker: Worker, activations: Peak, runtime: int | None) -> Json:
    """Measured bytes by cause of this rank, and what was predicted of the same."""
    memory = worker.device.memory_statistics()
    weights, cache = worker.weights.bytes, worker.cache.bytes
    return {
        "rank": worker.rank,
        "measured_bytes": {
            "weights": weights,
            "kv_cache": cache,
            "swap": worker.mover.device_bytes,
            "activations": activations.measured,
            "communication": worker.mesh.buffer_bytes,
            "runtime": runtime,
            "peak_tensors": weights + cache + activations.measured,
        },
        "predicted_activations": activations.predicted,
        "bytes_read": worker.bytes_read,
        "peak_rss_bytes": memory.peak_rss_bytes,
    }


def predicted_steps(plan: Plan, clock: StepClock) -> Json:
    """Predicted and measured seconds of the phases that were run, summed over their shapes. Steps
    of a pipeline are predicted as if those beside them were like them. `predicted_seconds` are with
    those of `swapped_blocks`, which are shown apart as well."""
    steps: Json = {}
    model = StepModel(plan.layout, plan.cluster, plan.formats, split_tokens=plan.split_tokens)
    for phase, shapes in clock.phases():
        if not shapes:
            continue
        predicted = 0.0
        for shape, count in shapes:
            step = model.step(mean_work(shape, count))
            in_flight = 1 + count.ahead / count.steps
            predicted += count.steps * max(step.seconds, in_flight * step.slowest_seconds)
        swapped = sum(c.swapped for _, c in shapes)
        swap_seconds = swapped * plan.move_seconds()
        steps[phase] = {
            "predicted_seconds": predicted + swap_seconds,
            "predicted_swap_seconds": swap_seconds,
            "measured_seconds": sum(c.seconds for _, c in shapes),
            "steps": sum(c.steps for _, c in shapes),
            "tokens": sum(c.steps * s.tokens for s, c in shapes),
            "rows": sum(c.steps * s.rows for s, c in shapes),
            "swapped_blocks": swapped,
        }
    return steps


def make_report(plan: Plan, ranks: list[Json], steps: Mapping[str, Json], scheduler: Json) -> Json:
    """The report of the ranks given; waits are told apart where a group's ranks are all there.
    `scheduler` counts what schedulers did."""
    rows = [row for entry in ranks for row in entry["collectives"]]
    stamps = [from_wire(entry["stamps"]) for entry in ranks]
    split = split_waits(rows, stamps, plan.layout.degrees.group)
    report = build_report(plan.to_json(), ranks, split, steps, _one_rank(plan))
    return {**report, "scheduler": scheduler}


def make_trace(plan: Plan, entries: list[Json], steps: int) -> Json:
    """The trace of the ranks given, see instrument/trace.py."""
    degrees = plan.layout.degrees
    ranks = []
    for entry in entries:
        stamps = from_wire(entry["stamps"])
        at = degrees.coordinates(stamps[0])
        name = f"rank {stamps[0]} (tp {at.tp}, pp {at.pp}, dp {at.dp})"
        ranks.append(RankTrace(name, stamps, entry["memory"]))
    return trace_document(ranks, degrees.group, steps)


def _one_rank(plan: Plan) -> Json:
    """What a single rank would hold of weights and of as much cache."""
    whole = Layout.make(plan.layout.spec, Degrees())
    return {
        "weights": weight_bytes(whole, 0, plan.formats),
        "kv_cache": plan.kv_cache_tokens * kv_bytes_per_token(whole, 0, plan.formats),
    }
