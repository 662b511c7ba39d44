"""What the pool's ranks do in tests of live tensors: real steps, measured and predicted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch

from launch.chosen_links import without_shared_memory
from parallel.architecture.checkpoint import load_spec
from parallel.collectives.mesh import MeshOptions
from parallel.devices.cpu import CpuDevice
from parallel.hardware.catalogue import load_cluster
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.activations import activation_bytes, in_time, stage_shape, step_bytes
from parallel.planner.formats import choose_formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.plan import Plan, make_plan
from parallel.planner.tape import StepShape
from parallel.runtime.activations import LiveTensors
from parallel.runtime.job import RankJob
from parallel.runtime.warmup import measure_peak, run_shape
from parallel.runtime.worker import Worker
from tests.engine_case import CLUSTERS


def plan_of(
    model: str,
    degrees: Degrees,
    limits: dict[str, Any],
    shared_memory: bool = False,
    weights: str = "stored",
    heads: str = "auto",
    stages: list[int] | None = None,
    cache: str | None = None,
) -> Plan:
    """On this machine; without `shared_memory` its ranks speak over gloo."""
    spec = load_spec(Path(model), weights=True)
    cluster = load_cluster("local", CLUSTERS, ranks=degrees.world_size)
    return make_plan(
        Layout.make(spec, degrees, stages, heads),
        cluster if shared_memory else without_shared_memory(cluster),
        choose_formats(spec, weights, cache=cache),
        EngineLimits(**limits),
        Workload(16, 16, 1),
        Budget(8.0),
    )


def device_of(plan: Plan) -> CpuDevice:
    return CpuDevice(1, plan.limits.native(plan.cluster.device(0).type))


def ready_worker(job: RankJob, plan: Plan) -> Worker:
    """Weights of one value: no file is read."""
    worker = Worker(plan, job.rank, job.mesh, device_of(plan), job.ledger)
    for tensor in worker.weights.tensors:
        tensor.fill_(0.01)
    return worker


def peaks(
    rank: int,
    degrees: list[int],
    cases: list[dict[str, Any]],
    collectives: str = "gloo",
) -> list[dict[str, int]]:
    """For each case (arguments of `plan_of`) the bytes of this rank, predicted and measured."""
    torch.set_num_threads(1)
    mesh = Degrees(tp=degrees[0], pp=degrees[1])
    first = plan_of(degrees=mesh, **cases[0])
    job = RankJob(first, rank, device_of(first), MeshOptions(collectives, 60.0, first.batches))
    found = []
    try:
        shared = "shared_memory" in (job.mesh.tp.backend, job.mesh.pp.backend)
        for case in cases:
            plan = plan_of(degrees=mesh, shared_memory=shared, **case)
            worker = ready_worker(job, plan)
            peak = measure_peak(worker, worker.device)
            memory = plan.memory[rank]
            stage = stage_shape(plan.layout, rank, plan.formats, plan.limits, plan.cluster)
            late = activation_bytes(stage, plan.limits, plan.context_tokens, plan.batches)
            late -= activation_bytes(in_time(stage), plan.limits, plan.context_tokens, plan.batches)
            found.append(
                {
                    "weights": worker.weights.bytes - memory.weights,
                    "kv_cache": worker.cache.bytes - memory.kv_cache,
                    "planned": memory.activations,
                    "predicted": peak.predicted,
                    "measured": peak.measured,
                    "late": late,
                    "held": memory.weights + memory.kv_cache,
                    "buffers": memory.communication,
                    "real_buffers": job.mesh.buffer_bytes or 0,
                }
            )
    finally:
        job.close()
    return found


def any_steps(
    model: str, weights: str, steps: int, seed: int, kernels: str, cache: str | None = None
) -> list[tuple[int, int]]:
    """(predicted, measured) bytes of random steps through the whole model on one rank."""
    limits = {"step_tokens": 40, "requests": 6, "context_tokens": 120, "kernels": kernels}
    plan = plan_of(model, Degrees(), limits, weights=weights, cache=cache)
    job = RankJob(plan, 0, device_of(plan), MeshOptions())
    random, found = Random(seed), []
    try:
        worker = ready_worker(job, plan)
        stage = stage_shape(plan.layout, 0, plan.formats, plan.limits, plan.cluster)
        for _ in range(steps):
            counts = [random.choice((1, 1, random.randint(1, 9))) for _ in range(6)]
            chunks = [(n, random.choice((n, random.randint(n, 119)))) for n in sorted(counts)]
            shape = StepShape(tuple(chunks[: random.randint(1, 6)]), 0)
            shape = replace(shape, rows=len(shape.chunks))
            with LiveTensors() as live:
                run_shape(worker, shape)
            found.append((step_bytes(stage, shape), live.peak_bytes))
    finally:
        job.close()
    return found
