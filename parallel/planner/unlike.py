"""Stage cuts for ranks on devices that differ, in the cluster's order: by the devices' own times
and memories, not by weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from parallel.architecture.spec import ModelSpec
from parallel.hardware.facts import Cluster
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.formats import Formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.memory import RankMemory
from parallel.planner.room import Room
from parallel.planner.stage_chain import Chain
from parallel.planner.stage_costs import ModelCosts, served_work
from parallel.planner.stage_order import least_bottleneck, least_latency
from parallel.planner.stage_problem import Option, Pool, StageProblem


@dataclass(frozen=True)
class Cutting:
    """A model to be cut into stages for a cluster, and what it will serve."""

    spec: ModelSpec
    cluster: Cluster
    formats: Formats
    limits: EngineLimits
    workload: Workload
    budget: Budget
    heads: str = "auto"

    @property
    def costs(self) -> ModelCosts:
        return ModelCosts(self.spec, self.formats, self.heads)

    def unlike_cuts(self, degrees: Degrees, latency: bool = True) -> tuple[tuple[int, ...], ...]:
        """Layers of each stage: with the fastest slowest stage and, where `latency` counts, with
        the least time through all. None where the stages' devices are alike, or nothing fits."""
        stages = range(degrees.pp)
        types = [{self.cluster.device(r).type for r in _ranks(degrees, pp)} for pp in stages]
        if all(t == types[0] for t in types):
            return ()
        layout = Layout.make(self.spec, degrees, heads=self.heads)
        room = Room.of(layout, self.cluster, self.formats, self.limits, self.budget)
        for requests in self.request_counts(degrees.dp):
            tokens = self.cache_tokens(requests)
            memory = room.memory(tokens // self.limits.block_tokens)
            options = tuple(self._stage(degrees, pp, memory, tokens) for pp in stages)
            pools = tuple(Pool(f"stage {pp}", (o.tp,)) for pp, o in enumerate(options))
            chain = Chain(StageProblem(pools, options))
            runs = [least_bottleneck(chain, stages)]
            if latency:
                runs.append(least_latency(chain, stages))
            cuts = [tuple(s.end - s.first for s in found) for found in runs if found is not None]
            if cuts:
                return tuple(dict.fromkeys(cuts))
        return ()

    def request_counts(self, dp: int) -> list[int]:
        """For how many requests at once a replica should have room: the best first."""
        here = min(-(-self.workload.concurrency // dp), self.limits.requests)
        return list(dict.fromkeys((here, -(-here // 2), 1)))

    def cache_tokens(self, requests: int) -> int:
        """Whole blocks for so many requests."""
        context = self.limits.context(self.spec.context_tokens)
        longest = min(context, self.workload.input_tokens + self.workload.output_tokens)
        page = self.limits.block_tokens
        return requests * -(-longest // page) * page

    def item_bytes(self, tp: int, tokens: int) -> tuple[int, ...]:
        """As in `ModelCosts`, remembered."""
        if (tp, tokens) not in self._bytes:
            self._bytes[tp, tokens] = self.costs.item_bytes(tp, tokens)
        return self._bytes[tp, tokens]

    def _stage(
        self, degrees: Degrees, pp: int, memory: Sequence[RankMemory], tokens: int
    ) -> Option:
        """Of all replicas the slowest, and the one with the least room."""
        replicas = [degrees.stage_ranks(pp, dp) for dp in range(degrees.dp)]
        alike = {self._kind(ranks): ranks for ranks in replicas}
        times = [self._seconds(degrees, ranks) for ranks in alike.values()]
        tp = degrees.tp_of(pp)
        return Option(
            pp,
            tp,
            tuple(max(column) for column in zip(*times, strict=True)),
            self.item_bytes(tp, tokens),
            min(memory[r].budget - beside_items(memory[r]) for r in _ranks(degrees, pp)),
            shared_bytes=self.costs.shared_bytes(tp),
        )

    def _seconds(self, degrees: Degrees, ranks: tuple[int, ...]) -> tuple[float, ...]:
        batches = self.limits.batches or degrees.pp
        key = (self._kind(ranks), degrees.dp, batches)
        if key not in self._times:
            work = served_work(self.workload, self.limits, degrees.dp, batches)
            self._times[key] = self.costs.seconds(self.cluster, ranks, work)
        return self._times[key]

    def _kind(self, ranks: Sequence[int]) -> tuple[tuple[str, int], ...]:
        """Groups of one kind are as fast: their devices' types, and which share a node."""
        devices = [self.cluster.device(r) for r in ranks]
        return tuple((d.type.name, d.node) for d in devices)

    @cached_property
    def _times(self) -> dict[object, tuple[float, ...]]:
        """What `_seconds` found: stages repeat."""
        return {}

    @cached_property
    def _bytes(self) -> dict[tuple[int, int], tuple[int, ...]]:
        return {}


def beside_items(memory: RankMemory) -> int:
    """What a rank holds that is of no layer."""
    return memory.activations + memory.swap + memory.communication + memory.runtime


def _ranks(degrees: Degrees, pp: int) -> list[int]:
    return [r for dp in range(degrees.dp) for r in degrees.stage_ranks(pp, dp)]
