"""What a rank of the pool does: a whole job on a checkpoint, its engine fed from memory."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import torch

from parallel.architecture.checkpoint import load_spec
from parallel.collectives.mesh import MeshOptions
from parallel.devices.cpu import CpuDevice
from parallel.hardware.catalogue import load_cluster
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.formats import choose_formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.plan import Plan, make_plan
from parallel.requests.types import Sampling
from parallel.requests.wire import event_from_wire
from parallel.runtime.engine import Engine
from parallel.runtime.job import RankJob

CLUSTERS = Path(__file__).resolve().parent.parent / "configs" / "clusters"


def plan_for(
    model: str,
    degrees: Degrees,
    heads: str = "auto",
    stages: list[int] | None = None,
    weights: str = "stored",
    step_tokens: int = 32,
    requests: int = 4,
    memory_gib: float = 2.0,
    sequence_parallel: str = "auto",
    kernels: str = "auto",
) -> Plan:
    spec = load_spec(Path(model), weights=True)
    layout = Layout.make(spec, degrees, stages, heads)
    return make_plan(
        layout,
        load_cluster("local", CLUSTERS, ranks=degrees.world_size),
        choose_formats(spec, weights),
        EngineLimits(
            step_tokens,
            requests,
            context_tokens=min(spec.context_tokens, 512),
            sequence_parallel=sequence_parallel,
            kernels=kernels,
        ),
        Workload(16, 16, 1),
        Budget(memory_gib),
    )


class MemoryRouter:
    """A router's channel in memory: requests are there from the start, tokens are kept."""

    def __init__(self, requests: list[dict[str, Any]]):
        self._inbox = deque(
            {
                "type": "submit",
                "id": i,
                "prompt": r["prompt"],
                "sampling": Sampling.from_wire(r["sampling"]).to_wire(),
            }
            for i, r in enumerate(requests)
        )
        self._left = len(requests)
        self.tokens: list[list[int]] = [[] for _ in requests]
        self.logprobs: list[list[float | None]] = [[] for _ in requests]
        self.reasons: list[str | None] = [None for _ in requests]

    def poll(self, timeout: float | None = 0.0) -> bool:
        return bool(self._inbox) or self._left == 0

    def receive(self) -> dict[str, Any]:
        return self._inbox.popleft() if self._inbox else {"type": "stop"}

    def send(self, message: dict[str, Any]) -> None:
        for event in map(event_from_wire, message.get("events", ())):
            if event.token >= 0:
                self.tokens[event.request_id].append(event.token)
                self.logprobs[event.request_id].append(event.logprob)
            if event.finish_reason is not None:
                self.reasons[event.request_id] = event.finish_reason
                self._left -= 1


def generate(
    rank: int,
    model: str,
    degrees: list[Any],
    requests: list[dict[str, Any]],
    collectives: str = "gloo",
    logits_file: str | None = None,
    **planning: Any,
) -> dict[str, Any]:
    """Tokens on leaders; every rank reports its bytes. The first step's logits go to a file.
    `degrees` are the fields of `Degrees`."""
    torch.set_num_threads(1)
    tp, pp, dp, stage_tp = degrees
    plan = plan_for(model, Degrees(tp, pp, dp, stage_tp and tuple(stage_tp)), **planning)
    device = CpuDevice(1, plan.limits.native(plan.cluster.device(rank).type))
    job = RankJob(plan, rank, device, MeshOptions(collectives, 60.0, plan.batches))
    try:
        job.load(lambda _: None)
        if logits_file is not None:
            _keep_first_logits(job, logits_file)
        router = MemoryRouter(requests)
        if job.is_leader:
            engine = Engine(
                plan,
                job.worker,
                job.control,
                router,
                job.clock,
                job.replica_report,
            )
            engine.run()
            job.control.broadcast({"op": "stop"})
            whole = engine.scheduler.blocks.whole
        else:
            job.follow()
            whole = True
        return {
            "tokens": router.tokens if job.is_leader else None,
            "logprobs": router.logprobs,
            "reasons": router.reasons,
            "weights": job.worker.weights.bytes,
            "kv_cache": job.worker.cache.bytes,
            "bytes_read": job.worker.bytes_read,
            "blocks_whole": whole,
            "collectives": job.ledger.rows(rank),
            "backends": job.mesh.describe(),
        }
    finally:
        job.close()


def _keep_first_logits(job: RankJob, file: str) -> None:
    model, worker = job.worker.model, job.worker
    original = model.logits
    seen: list[bool] = []

    def logits(hidden: torch.Tensor, step: Any) -> torch.Tensor:
        out = original(hidden, step)
        if worker.samples and not seen:
            seen.append(True)
            torch.save(out, f"{file}.{job.coordinates.dp}")
        return out

    model.logits = logits  # type: ignore[method-assign]
