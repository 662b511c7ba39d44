"""The plan of one layout: memory by cause, room in the cache, times, cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from parallel.hardware.facts import Cluster, DeviceType
from parallel.layout.layout import Layout
from parallel.planner.costs import EngineCosts
from parallel.planner.formats import Formats
from parallel.planner.graphs import spare_blocks
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.load import Load, LoadTimes
from parallel.planner.memory import RankMemory, kv_bytes_per_token
from parallel.planner.queueing import Rules, Simulation
from parallel.planner.room import size_cache, swap_blocks
from parallel.planner.timing import StepModel, StepTime, unlike_replicas
from parallel.planner.token_split import least_split_tokens
from parallel.planner.work import StepWork

_STEADY_REQUESTS = 48
"""Requests that are simulated after the first burst, at most."""


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
    chunk_tokens: int
    batch: int
    pareto: bool = False
    choice: str = ""
    """Why a search put it first."""

    @property
    def kv_cache_tokens(self) -> int:
        """Per replica; every rank of a replica has as many."""
        return self.blocks * self.limits.block_tokens

    def spare_blocks(self, rank: int) -> int:
        """Blocks of the rank's cache that no sequence gets (planner/graphs.py)."""
        return spare_blocks(self.cluster.device(rank).type.kind == "cuda", self.limits)

    @property
    def swap_blocks(self) -> int:
        """Blocks in each rank's host memory that preempted sequences are swapped to."""
        layout, size = self.layout, self.limits.block_tokens
        ranks = layout.degrees.replica(0)
        return swap_blocks(
            self.limits, (size * kv_bytes_per_token(layout, r, self.formats) for r in ranks)
        )

    @cached_property
    def split_tokens(self) -> int | None:
        """Tokens of a step from which on tensor-parallel ranks split them; None: never."""
        return least_split_tokens(self.layout, self.cluster, self.formats, self.limits)

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
    def kv_cache_requests(self) -> int:
        """Requests of the workload that the cache of a replica has room for at their full length;
        more may run while they are shorter."""
        tokens = self.workload.input_tokens + self.workload.output_tokens
        return self.blocks // -(-tokens // self.limits.block_tokens)

    @cached_property
    def load(self) -> LoadTimes:
        """The workload's, over as many requests as stand for many."""
        return self.load_over(1 + min(1.0, _STEADY_REQUESTS / self._clients))

    def load_over(self, rounds: float) -> LoadTimes:
        """`rounds` requests of each client simulated on the replicas, each of which has its share
        of the clients: the mean over them where their devices differ."""
        kinds = unlike_replicas(self.layout, self.cluster)
        return LoadTimes.mean([(self._load(replica, rounds), count) for replica, count in kinds])

    def _load(self, replica: int, rounds: float) -> LoadTimes:
        limits, workload, batches = self.limits, self.workload, self.batches
        model = StepModel(
            self.layout,
            self.cluster,
            self.formats,
            replica=replica,
            split_tokens=self.split_tokens,
        )
        rules = Rules(
            step_tokens=batches * limits.step_tokens,
            requests=min(limits.requests, batches * limits.step_tokens),
            cache_tokens=self.kv_cache_tokens,
            block_tokens=limits.block_tokens,
            host_blocks=self.swap_blocks,
            move_seconds=self.move_seconds(replica),
        )
        load = Load(self._clients, workload.input_tokens, workload.output_tokens, rounds=rounds)

        def seconds(work: StepWork) -> float:
            return model.round_seconds(work, batches, limits.step_tokens)

        return Simulation(load, rules, seconds).run()

    def move_seconds(self, replica: int = 0) -> float:
        """A block's way to host memory, on the rank that takes longest: all move theirs at once."""
        costs, tokens = EngineCosts(), self.limits.block_tokens
        return max(
            tokens
            * kv_bytes_per_token(self.layout, rank, self.formats)
            / costs.host_bytes_per_second(self.cluster.device(rank).type)
            for rank in self.layout.degrees.replica(replica)
        )

    @property
    def _clients(self) -> int:
        return -(-self.workload.concurrency // self.layout.degrees.dp)

    @property
    def ttft_seconds(self) -> float:
        """Mean under the workload's load, queueing included."""
        return self.load.ttft_seconds

    @property
    def tpot_seconds(self) -> float:
        """Mean under the workload's load, the prompts of others between two tokens included."""
        return self.load.tpot_seconds

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of all replicas."""
        return self.load.tokens_per_second * self.workload.concurrency / self._clients

    @property
    def dollars_per_hour(self) -> float | None:
        """None unless every device has a price."""
        return _sum([d.dollars_per_hour for d in self._devices])

    @property
    def dollars_per_million_tokens(self) -> float | None:
        price = self.dollars_per_hour
        return None if price is None else price / 3600 / self.tokens_per_second * 1e6

    @property
    def joules_per_token(self) -> float | None:
        """At the devices' full power; None unless every device says its own."""
        watts = _sum([d.power_watts for d in self._devices])
        return None if watts is None else watts / self.tokens_per_second

    @property
    def _devices(self) -> list[DeviceType]:
        return [self.cluster.device(r).type for r in range(self.layout.degrees.world_size)]

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
            "swap_tokens": self.swap_blocks * self.limits.block_tokens,
            "context_tokens": self.context_tokens,
            "split_tokens": self.split_tokens,
            "kv_cache_requests": self.kv_cache_requests,
            "prefill": self._phase(self.prefill, self.chunk_tokens),
            "decode": self._phase(self.decode, self.batch),
            "ttft_ms": self.ttft_seconds * 1e3,
            "tpot_ms": self.tpot_seconds * 1e3,
            "tokens_per_second": self.tokens_per_second,
            "dollars_per_million_tokens": self.dollars_per_million_tokens,
            "dollars_per_hour": self.dollars_per_hour,
            "joules_per_token": self.joules_per_token,
        }

    def _phase(self, step: StepTime, tokens: int) -> dict[str, float]:
        """A step of `tokens`, and what communication costs each of them."""
        return {
            "tokens": tokens,
            "seconds": step.seconds,
            "communication_seconds": step.communication_seconds,
            "communication_bytes": step.communication_bytes,
            "communication_share": step.communication_seconds / step.seconds,
            "communication_seconds_per_token": step.communication_seconds / tokens,
            "communication_bytes_per_token": step.communication_bytes / tokens,
            "imbalance_seconds": step.imbalance_seconds,
            "bubble": self.bubble,
        }

    def marked(self, **marks: Any) -> Plan:
        """The same with `pareto` or `choice` set."""
        other = replace(self, **marks)
        # What was simulated holds for it as well.
        vars(other)["load"] = self.load
        return other


def _sum(figures: list[float | None]) -> float | None:
    known = [f for f in figures if f is not None]
    return sum(known) if len(known) == len(figures) else None


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
    kinds = [r for r, _ in unlike_replicas(layout, cluster)]
    split = least_split_tokens(layout, cluster, formats, limits)
    models = [StepModel(layout, cluster, formats, replica=r, split_tokens=split) for r in kinds]
    prefill, decode = StepWork.prompt(chunk), StepWork.decode(batch, batch * average)
    return Plan(
        layout,
        cluster,
        formats,
        limits,
        workload,
        memory,
        blocks,
        prefill=max((m.step(prefill) for m in models), key=lambda step: step.seconds),
        decode=max((m.step(decode) for m in models), key=lambda step: step.seconds),
        chunk_tokens=chunk,
        batch=batch,
    )
