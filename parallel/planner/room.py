"""How many cache blocks the budget leaves room for, and every rank's bytes with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from parallel.errors import CapacityError
from parallel.hardware.facts import Cluster, DeviceType
from parallel.layout.layout import Layout
from parallel.planner.activations import StageShape, activation_bytes, stage_shape
from parallel.planner.formats import Formats
from parallel.planner.graphs import graph_bytes, spare_blocks
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.memory import (
    RankMemory,
    attention_bytes,
    beside_bytes,
    communication_bytes,
    kv_bytes_per_token,
    runtime_bytes,
    swap_bytes,
    weight_bytes,
)
from parallel.units import GIB, format_bytes


@dataclass(frozen=True)
class Rank:
    """`memory` is what doesn't depend on the cache: weights, communication, swapping."""

    device: DeviceType
    memory: RankMemory
    stage: StageShape
    block_bytes: int


@dataclass(frozen=True)
class Room:
    """The ranks of a layout, and how their bytes grow with the cache: a longer context that it can
    hold makes larger steps too."""

    layout: Layout
    limits: EngineLimits
    ranks: tuple[Rank, ...]

    @classmethod
    def of(
        cls,
        layout: Layout,
        cluster: Cluster,
        formats: Formats,
        limits: EngineLimits,
        budget: Budget,
    ) -> Room:
        stages: dict[object, StageShape] = {}
        equal: dict[StageShape, StageShape] = {}
        ranks = []
        for number in range(layout.degrees.world_size):
            device = cluster.device(number)
            at = layout.degrees.coordinates(number)
            # Replicas are alike where their devices and links are.
            key = (at.tp, at.pp, device.type.kind, device.node)
            if key not in stages:
                shape = stage_shape(layout, number, formats, limits, cluster)
                stages[key] = equal.setdefault(shape, shape)
            memory = RankMemory(
                weights=weight_bytes(layout, number, formats),
                kv_cache=0,
                activations=0,
                communication=communication_bytes(layout, number, cluster, limits),
                runtime=0,
                budget=budget.bytes(device.type.memory_bytes),
            )
            per_token = kv_bytes_per_token(layout, number, formats)
            ranks.append(Rank(device.type, memory, stages[key], per_token * limits.block_tokens))
        swapped = swap_blocks(limits, (r.block_bytes for r in ranks))
        held = [swap_bytes(r.device, r.block_bytes, swapped) for r in ranks]
        return cls(
            layout,
            limits,
            tuple(
                replace(r, memory=replace(r.memory, swap=swap))
                for r, swap in zip(ranks, held, strict=True)
            ),
        )

    def memory(self, blocks: int) -> tuple[RankMemory, ...]:
        """Every rank's bytes with a cache of so many blocks."""
        context = self._context(blocks)
        batches = self.limits.batches or self.layout.degrees.pp
        memories, known = [], {}
        vocabulary = self.layout.spec.vocabulary
        for number, r in enumerate(self.ranks):
            # Equal stages are one object.
            if id(r.stage) not in known:
                given = (r.stage, self.limits, context, batches)
                known[id(r.stage)] = activation_bytes(*given), graph_bytes(*given)
            activations, graphs = known[id(r.stage)]
            spare = spare_blocks(r.device.kind == "cuda", self.limits)
            workspace = attention_bytes(r.device, self.limits.attention)
            if number == 0:
                workspace += beside_bytes(r.device, self.limits.beside, vocabulary)
            memories.append(
                replace(
                    r.memory,
                    kv_cache=(blocks + spare) * r.block_bytes,
                    activations=activations,
                    runtime=runtime_bytes(r.device, activations) + graphs + workspace,
                )
            )
        return tuple(memories)

    def _context(self, blocks: int) -> int:
        model = self.limits.context(self.layout.spec.context_tokens)
        return min(model, blocks * self.limits.block_tokens)

    def most_blocks(self, least: int) -> int:
        """As many as fit, and no more than all requests can use. Raises `CapacityError` when the
        `least` don't."""
        page = self.limits.block_tokens
        longest = -(-self._context(1 << 60) // page)
        most = self.limits.requests * longest
        if not _fits(self.memory(least)):
            raise CapacityError(self._does_not_fit(least))
        if least <= longest and _fits(self.memory(longest)):
            # From here on nothing but the cache grows.
            full = self.memory(longest)
            free = [
                (m.budget - m.total) // r.block_bytes for m, r in zip(full, self.ranks, strict=True)
            ]
            return min(most, longest + min(free))
        low, high = least, longest
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _fits(self.memory(middle)) else (low, middle)
        return low

    def _does_not_fit(self, blocks: int) -> str:
        memories = self.memory(blocks)
        rank = max(range(len(memories)), key=lambda r: memories[r].total - memories[r].budget)
        m = memories[rank]
        return (
            f"{self.layout.spec.name} doesn't fit with {self.layout.degrees}: rank {rank} needs "
            f"{format_bytes(m.total)} (weights {format_bytes(m.weights)}, KV cache of one request "
            f"{format_bytes(m.kv_cache)}, activations about {format_bytes(m.activations)}, "
            f"communication about {format_bytes(m.communication)}, runtime about "
            f"{format_bytes(m.runtime)}); its budget is {format_bytes(m.budget)}"
        )


def _fits(memories: Sequence[RankMemory]) -> bool:
    return all(m.total <= m.budget for m in memories)


def swap_blocks(limits: EngineLimits, block_bytes: Iterable[int]) -> int:
    """Blocks that each rank's host pool holds: as many as fit where a block takes most."""
    return int(limits.swap_gib * GIB) // max(block_bytes)


def size_cache(
    layout: Layout,
    cluster: Cluster,
    formats: Formats,
    limits: EngineLimits,
    workload: Workload,
    budget: Budget,
) -> tuple[tuple[RankMemory, ...], int]:
    """Every rank's bytes by cause and the number of blocks in each replica's cache.

    Raises `CapacityError` when one request of the workload wouldn't fit, with the numbers."""
    room = Room.of(layout, cluster, formats, limits, budget)
    context = limits.context(layout.spec.context_tokens)
    least = min(context, workload.input_tokens + workload.output_tokens)
    blocks = room.most_blocks(-(-least // limits.block_tokens))
    return room.memory(blocks), blocks
