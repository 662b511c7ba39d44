"""What a rank of the pool does under a script of requests: they come, are cancelled and end while
others run, in a cache that is too small for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
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
from parallel.planner.memory import kv_bytes_per_token
from parallel.planner.plan import Plan, make_plan
from parallel.requests.types import Request, Sampling, TokenEvent
from parallel.requests.wire import event_from_wire
from parallel.runtime.engine import Engine
from parallel.runtime.job import RankJob
from parallel.units import GIB
from tests.engine_case import CLUSTERS

BLOCK_TOKENS = 4
BLOCKS, SWAP_BLOCKS = 32, 10
LIMITS = EngineLimits(
    step_tokens=24, requests=8, block_tokens=BLOCK_TOKENS, context_tokens=128, queue=24
)

Script = list[dict[str, Any]]
"""Entries `{"after": tokens, "submit": {...}}` or `{"after", "cancel": id}`: due once so many
tokens have come in all, in order."""


def tight_plan(model: str, degrees: Degrees, batches: int | None) -> Plan:
    """A pool of `BLOCKS` blocks, and `SWAP_BLOCKS` in host memory."""
    spec = load_spec(Path(model), weights=True)
    layout, formats = Layout.make(spec, degrees), choose_formats(spec)
    block = BLOCK_TOKENS * max(
        kv_bytes_per_token(layout, rank, formats) for rank in range(degrees.world_size)
    )
    limits = replace(LIMITS, swap_gib=(SWAP_BLOCKS + 0.5) * block / GIB, batches=batches)
    cluster = load_cluster("local", CLUSTERS, ranks=degrees.world_size)
    plan = make_plan(layout, cluster, formats, limits, Workload(16, 16, 1), Budget(2.0))
    assert plan.swap_blocks == SWAP_BLOCKS
    return replace(plan, blocks=BLOCKS)


class ScriptedRouter:
    """A router's channel in memory. `on_preempted` requests are cancelled once they have lost
    their place."""

    def __init__(self, script: Script, on_preempted: list[int]):
        self._script, self._at = script, 0
        self._on_preempted = set(on_preempted)
        self._open: set[int] = set()
        self.events: dict[int, list[TokenEvent]] = {}
        self.engine: Engine | None = None
        self.cancelled_while_preempted = 0
        self._tokens = 0

    def poll(self, timeout: float | None = 0.0) -> bool:
        if timeout is None or self._preempted() is not None:
            return True
        return self._at < len(self._script) and self._script[self._at]["after"] <= self._tokens

    def receive(self) -> dict[str, Any]:
        preempted = self._preempted()
        if preempted is not None:
            self._on_preempted.remove(preempted)
            self.cancelled_while_preempted += 1
            return {"type": "cancel", "id": preempted}
        if self._at == len(self._script):
            return {"type": "stop"}
        entry = self._script[self._at]
        self._at += 1
        # Idle, the engine goes on in the script at once.
        self._tokens = max(self._tokens, entry["after"])
        if "cancel" in entry:
            return {"type": "cancel", "id": entry["cancel"]}
        wanted = entry["submit"]
        request = Request(
            wanted["id"],
            tuple(wanted["prompt"]),
            Sampling.from_wire(wanted["sampling"]),
            wanted["priority"],
            wanted["group"],
        )
        self._open.add(request.id)
        self.events[request.id] = []
        return {"type": "submit", **request.to_wire()}

    def _preempted(self) -> int | None:
        assert self.engine is not None
        if not self._on_preempted:
            return None
        waiting = [s for s in self.engine.scheduler.waiting if s.told is not None]
        return next((s.id for s in waiting if s.id in self._on_preempted), None)

    def send(self, message: dict[str, Any]) -> None:
        for event in map(event_from_wire, message["events"]):
            assert event.request_id in self._open, "an event after the last one"
            self.events[event.request_id].append(event)
            self._tokens += event.token >= 0
            if event.finish_reason is not None:
                self._open.remove(event.request_id)


def interleave(
    rank: int,
    model: str,
    degrees: list[int],
    script: Script,
    on_preempted: list[int],
    collectives: str = "gloo",
    batches: int | None = None,
) -> dict[str, Any]:
    """On the leader tokens, reasons and cached tokens of each request, and how often each kind of
    thing happened; on every rank whether its mirror of the sequences is empty."""
    torch.set_num_threads(1)
    plan = tight_plan(model, Degrees(*degrees), batches)
    job = RankJob(plan, rank, CpuDevice(1), MeshOptions(collectives, 120.0, plan.batches))
    try:
        job.load(lambda _: None)
        if not job.is_leader:
            job.follow()
            return {"mirror": len(job.worker.sequences.states)}
        router = ScriptedRouter(script, on_preempted)
        engine = Engine(plan, job.worker, job.control, router, job.clock, job.replica_report)
        router.engine = engine
        seen = watch(engine)
        engine.run()
        job.control.broadcast({"op": "stop"})
        return {
            **left_behind(engine, job, seen),
            "cancelled_while_preempted": router.cancelled_while_preempted,
            "answers": {
                i: {**answer_of(events), "code": events[-1].code}
                for i, events in router.events.items()
            },
        }
    finally:
        job.close()


def answer_of(events: list[TokenEvent]) -> dict[str, Any]:
    return {
        "tokens": [e.token for e in events if e.token >= 0],
        "reason": events[-1].finish_reason,
        "cached": [e.cached_tokens for e in events],
    }


def left_behind(engine: Engine, job: RankJob, seen: Counter[str]) -> dict[str, Any]:
    """What a leader holds in the end, and how often each kind of thing happened."""
    return {
        "mirror": len(job.worker.sequences.states),
        "whole": engine.scheduler.blocks.whole,
        "swap_bytes": (job.plan.memory[job.rank].swap, job.worker.mover.device_bytes),
        "seen": dict(seen),
        "counts": vars(engine.scheduler.counts),
    }


def watch(engine: Engine) -> Counter[str]:
    """Counts what its batches carry."""
    seen: Counter[str] = Counter()
    run = engine.worker.run

    def watched(message: Any) -> Any:
        chunks = message.chunks
        seen["steps"] += 1
        seen["mixed steps"] += chunks[0].count == 1 and chunks[-1].count > 1
        seen["most in flight"] = max(seen["most in flight"], len(engine._in_flight) + 1)
        seen["copied"] += len(message.moves.copies)
        seen["swapped out"] += len(message.moves.out)
        seen["swapped in"] += len(message.moves.back)
        seen["tables cut"] += sum(
            keep < engine.worker.sequences[i].table.count for i, keep, _ in message.tables
        )
        return run(message)

    engine.worker.run = watched  # type: ignore[method-assign]
    return seen
