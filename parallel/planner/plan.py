"""The plan of one layout: memory by cause, room in the cache, times, cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from parallel.hardware.facts import Cluster
from parallel.layout.layout import Layout
from parallel.planner.formats import Formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.memory import RankMemory
from parallel.planner.room import size_cache
from parallel.planner.timing import StepModel, StepTime
from parallel.planner.work import StepWork


@dataclass(frozen=True)
class Plan:
    """What a run will do; the runtime allocates `blocks` and what `layout` says, to the byte."""

    layout: Layout
    cluster: Cluster
    formats: Formats
    limits: EngineLimits
    workload: Workload
    memory: tuple[RankMemory, ...]
    blocks: int
    prefill: StepTime
    decode: StepTime
    pareto: bool = False

    @property
    def kv_cache_tokens(self) -> int:
        """Per replica; every rank of a replica has as many."""
        return self.blocks * self.limits.block_tokens

    @property
    def context_tokens(self) -> int:
        """The longest sequence that can be served."""
        model = self.limits.context(self.layout.spec.context_tokens)
        return min(model, self.kv_cache_tokens)

    @property
    def batches(self) -> int:
        """Batches in flight in a replica's pipeline."""
        return self.limits.batches or self.layout.degrees.pp

    @property
    def bubble(self) -> float:
        """Share of a pipeline that fills and drains: (p-1)/(m+p-1)."""
        p = self.layout.degrees.pp
        return (p - 1) / (self.batches + p - 1)

    @property
    def ttft_seconds(self) -> float:
        chunks = -(-self.workload.input_tokens // self.limits.step_tokens)
        return chunks * self.prefill.seconds

    @property
    def tpot_seconds(self) -> float:
        """Steady state: the next token of a sequence comes when its batch has been through all
        stages, and no sooner than the slowest stage has served all batches."""
        return max(self.batches * self.decode.slowest_seconds, self.decode.seconds)

    @property
    def tokens_per_second(self) -> float:
        w, degrees = self.workload, self.layout.degrees
        here = -(-w.concurrency // degrees.dp)
        busy = w.output_tokens * self.tpot_seconds + here * self.ttft_seconds
        return w.concurrency * w.output_tokens / busy

    @property
    def dollars_per_million_tokens(self) -> float | None:
        prices = [
            self.cluster.device(r).type.dollars_per_hour
            for r in range(self.layout.degrees.world_size)
        ]
        known = [p for p in prices if p is not None]
        if len(known) < len(prices):
            return None
        return sum(known) / 3600 / self.tokens_per_second * 1e6

    def to_json(self) -> dict[str, Any]:
        """The contract's form (docs/contract.md)."""
        layout, degrees = self.layout, self.layout.degrees
        stages = [
            {
                "layers": [s.first, s.end],
                "tp": degrees.tp_of(pp),
                "ranks": [r for dp in range(degrees.dp) for r in degrees.stage_ranks(pp, dp)],
                "embedding": s.embedding,
                "head": s.head,
            }
            for pp, s in enumerate(layout.stages)
        ]
        ranks = []
        for rank, memory in enumerate(self.memory):
            at = degrees.coordinates(rank)
            ranks.append(
                {
                    "rank": rank,
                    "device": self.cluster.device(rank).type.name,
                    "coordinates": {"tp": at.tp, "pp": at.pp, "dp": at.dp},
                    "memory_bytes": memory.to_json(),
                }
            )
        return {
            "model": layout.spec.name,
            "cluster": self.cluster.name,
            "tp": degrees.tp,
            "pp": degrees.pp,
            "dp": degrees.dp,
            "stage_tp": degrees.stage_tp and list(degrees.stage_tp),
            "world_size": degrees.world_size,
            "heads": layout.heads,
            "precision": self.formats.to_json(),
            "pareto": self.pareto,
            "stages": stages,
            "ranks": ranks,
            "kv_cache_tokens": self.kv_cache_tokens,
            "context_tokens": self.context_tokens,
            "prefill": self._phase(self.prefill),
            "decode": self._phase(self.decode),
            "ttft_ms": self.ttft_seconds * 1e3,
            "tpot_ms": self.tpot_seconds * 1e3,
            "tokens_per_second": self.tokens_per_second,
            "dollars_per_million_tokens": self.dollars_per_million_tokens,
        }

    def _phase(self, step: StepTime) -> dict[str, float]:
        return {
            "seconds": step.seconds,
            "communication_seconds": step.communication_seconds,
            "communication_bytes": step.communication_bytes,
            "bubble": self.bubble,
        }

    def marked(self, pareto: bool) -> Plan:
        return replace(self, pareto=pareto)


def make_plan(
    layout: Layout,
    cluster: Cluster,
    formats: Formats,
    limits: EngineLimits,
    workload: Workload,
    budget: Budget,
) -> Plan:
    """Sizes the cache to what the budget leaves. Raises `CapacityError` when one request of the
    workload wouldn't fit, with the numbers and the cheapest change."""
    degrees = layout.degrees
    memory, blocks = size_cache(layout, cluster, formats, limits, workload, budget)
    batches = limits.batches or degrees.pp
    here = -(-workload.concurrency // degrees.dp)
    batch = -(-min(here, limits.requests) // batches)
    average = workload.input_tokens + workload.output_tokens // 2
    chunk = min(workload.input_tokens, limits.step_tokens)
    model = StepModel(layout, cluster, formats)
    return Plan(
        layout,
        cluster,
        formats,
        limits,
        workload,
        memory,
        blocks,
        prefill=model.step(StepWork.prompt(chunk)),
        decode=model.step(StepWork.decode(batch, batch * average)),
    )
