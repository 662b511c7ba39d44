"""Layouts of one replica on unlike devices: the stages, each stage's devices and its tp are all the
search's choice, which says what device each rank has to be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from parallel.errors import LayoutError
from parallel.hardware.facts import Cluster, Device
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.room import Room
from parallel.planner.stage_chain import Chain
from parallel.planner.stage_costs import only, served_work
from parallel.planner.stage_order import least_bottleneck
from parallel.planner.stage_places import stage_places
from parallel.planner.stage_problem import NoStaging, Option, Pool, StageProblem, Staging
from parallel.planner.stage_search import StageSearch
from parallel.planner.unlike import Cutting, beside_items

_AS_GOOD = 1 + 1e-3
"""Ranks in the cluster's own order may cost this factor."""


@dataclass(frozen=True)
class MixedLayout:
    """Layers and tp of each stage; `devices[rank]` is the number in the cluster of the device that
    the rank has to be."""

    stages: tuple[int, ...]
    stage_tp: tuple[int, ...]
    devices: tuple[int, ...]
    staging: Staging

    @property
    def degrees(self) -> Degrees:
        return Degrees.of_stages(self.stage_tp)

    @property
    def in_order(self) -> bool:
        """Whether ranks are the devices of the same numbers."""
        return self.devices == tuple(range(len(self.devices)))


def mixed_layouts(cutting: Cutting) -> list[MixedLayout]:
    """For every number of batches in flight the layout with the shortest round, and the one with
    the least time through all stages. Raises `NoStaging` when the model fits in no way."""
    found: dict[object, MixedLayout] = {}
    refusal: NoStaging | None = None
    most = min(cutting.spec.layers, cutting.cluster.device_count)
    for batches in (2**i for i in range(most.bit_length())):
        try:
            for layout in _best(cutting, batches):
                found.setdefault((layout.stages, layout.devices), layout)
        except NoStaging as error:
            refusal = refusal or error
    if refusal is not None and not found:
        raise refusal
    return list(found.values())


def _best(cutting: Cutting, batches: int) -> Iterator[MixedLayout]:
    pools = _pools(cutting.cluster)
    for requests in cutting.request_counts(1):
        problem = stage_problem(cutting, batches, requests)
        search = StageSearch(problem)
        try:
            answers = [search.throughput(batches)]
        except NoStaging:
            if requests == 1:
                raise
            continue
        if batches == 1:
            answers.append(search.latency())
        yield from (_layout(problem, pools, answer) for answer in answers)
        return


def _pools(cluster: Cluster) -> list[list[list[Device]]]:
    """Devices by type, then by node."""
    found: dict[object, dict[int, list[Device]]] = {}
    for device in cluster.devices:
        found.setdefault(device.type, {}).setdefault(device.node, []).append(device)
    return [list(nodes.values()) for nodes in found.values()]


def stage_problem(cutting: Cutting, batches: int, requests: int) -> StageProblem:
    """With a cache for so many requests, as so many batches in flight. Groups of 1, 2, 4, … ranks
    that the model can be split over; every stage is taken to hold what the fullest of three would
    beside its layers."""
    pools = _pools(cutting.cluster)
    options, places = [], []
    for number, nodes in enumerate(pools):
        node = max(nodes, key=len)
        for tp in (2**i for i in range(len(node).bit_length())):
            try:
                Layout.make(cutting.spec, Degrees(tp=tp), heads=cutting.heads)
            except LayoutError:
                continue
            ranks = [d.index for d in node[:tp]]
            options.append(_option(cutting, number, ranks, batches, requests))
            places.append((number, ranks[0]))
    hops = tuple(tuple(_hop_seconds(cutting, a, b, batches) for b in places) for a in places)
    return StageProblem(
        tuple(
            Pool(
                nodes[0][0].type.name,
                tuple(map(len, nodes)),
                nodes[0][0].type.dollars_per_hour or 0.0,
            )
            for nodes in pools
        ),
        tuple(options),
        hops,
    )


def _option(
    cutting: Cutting, pool: int, ranks: Sequence[int], batches: int, requests: int
) -> Option:
    costs, tp, tokens = cutting.costs, len(ranks), cutting.cache_tokens(requests)
    work = served_work(cutting.workload, cutting.limits, 1, batches)
    part = only(cutting.cluster, ranks)
    stages = min(3, cutting.spec.layers)
    node = replace(part.nodes[0], devices=part.nodes[0].devices * stages)
    layout = Layout.make(cutting.spec, Degrees(tp, stages), heads=cutting.heads)
    room = Room.of(
        layout,
        replace(part, nodes=(node,)),
        cutting.formats,
        replace(cutting.limits, batches=batches),
        cutting.budget,
    )
    memory = room.memory(tokens // cutting.limits.block_tokens)
    return Option(
        pool,
        tp,
        costs.seconds(cutting.cluster, ranks, work),
        cutting.item_bytes(tp, tokens),
        memory[0].budget,
        stage_bytes=max(map(beside_items, memory)),
        shared_bytes=costs.shared_bytes(tp),
    )


def _hop_seconds(
    cutting: Cutting, before: tuple[int, int], after: tuple[int, int], batches: int
) -> float:
    """Hidden states of a decode from a stage to the next: between nodes where the pools differ or
    have several, else on the node's own link."""
    cluster, work = cutting.cluster, served_work(cutting.workload, cutting.limits, 1, batches)
    pools = _pools(cluster)
    nodes = pools[after[0]]
    other = after[1] if before[0] != after[0] else nodes[-1][-1].index
    if other == before[1]:
        return 0.0
    size = work[0][0].tokens * cutting.spec.hidden * cutting.formats.compute.bytes
    return cluster.collective_seconds("send", size, (before[1], other))


def _layout(
    problem: StageProblem, pools: list[list[list[Device]]], staging: Staging
) -> MixedLayout:
    """With ranks in the cluster's order where the stages may come in it."""
    places = stage_places(problem, staging)
    firsts = [pools[p.pool][p.node][p.first].index for p in places]
    order = sorted(range(len(firsts)), key=lambda stage: firsts[stage])
    chain, options = Chain(problem), [s.option for s in staging.stages]
    runs = least_bottleneck(chain, [options[stage] for stage in order])
    if runs is not None:
        again = chain.evaluate(runs)
        if (
            again.bottleneck_seconds <= staging.bottleneck_seconds * _AS_GOOD
            and again.total_seconds <= staging.total_seconds * _AS_GOOD
        ):
            staging, firsts = again, [firsts[stage] for stage in order]
    stage_tp = tuple(problem.options[s.option].tp for s in staging.stages)
    devices = [f + i for f, tp in zip(firsts, stage_tp, strict=True) for i in range(tp)]
    return MixedLayout(staging.counts, stage_tp, tuple(devices), staging)
