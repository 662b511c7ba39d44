"""Seconds of a step: roofline per operation, the engine's own costs, and the communication that
nothing hides.

Step = Σ stages of (Σ layers of (products + attention + small kernels) + head + collectives)
+ host work of the leader + the tokens' way back to it. Products and collectives:
docs/hardware.md. A prompt's chunk isn't replayed from a graph: its stage takes at least the time
of launching its kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.hardware.facts import Cluster, DeviceType, Launch
from parallel.layout.layout import Layout
from parallel.planner.communication import (
    Collective,
    called_among,
    splits_tokens,
    step_collectives,
)
from parallel.planner.costs import EngineCosts
from parallel.planner.formats import Formats
from parallel.planner.kernels import NORM_PASSES, RankKernels, rank_kernels
from parallel.planner.pipeline import Passage
from parallel.planner.work import StepWork

_REPLY_BYTES = 64
"""Of a token on its way back to the leader, its message's frame included."""


@dataclass(frozen=True)
class StepTime:
    """One step of one batch. `seconds` through all stages in turn and back; `slowest_seconds` of
    the stage that limits a full pipeline, the leader's host work included; `communication_seconds`
    with waiting for late ranks, receiving and the way back; `communication_bytes` sent by the rank
    that sends most; `imbalance_seconds` that stages' slowest ranks take beyond the mean of their
    ranks; `passage` is the same stage by stage."""

    seconds: float
    slowest_seconds: float
    communication_seconds: float
    communication_bytes: int
    imbalance_seconds: float
    passage: Passage


@dataclass(frozen=True)
class _Fixed:
    """Seconds of one stage that depend on tokens and rows alone: all but attention; `collectives`
    of its tensor-parallel group."""

    compute: float
    imbalance: float
    communication: float
    sent: int
    collectives: int
    launch: float


class StepModel:
    """The times of one replica's steps. What depends on tokens alone is computed once."""

    def __init__(
        self,
        layout: Layout,
        cluster: Cluster,
        formats: Formats,
        costs: EngineCosts | None = None,
        replica: int = 0,
        split_tokens: int | None = None,
    ):
        self.split_tokens = split_tokens
        self.layout, self.cluster, self.formats, self.replica = layout, cluster, formats, replica
        self.costs = costs or EngineCosts()
        self._seen: dict[int, DeviceType] = {}
        leader = cluster.device(layout.degrees.rank(0, 0, replica)).type
        self._host = self.costs.overheads_on(leader)
        self._stages = [_Stage(self, self._ranks(pp), pp) for pp in range(layout.degrees.pp)]
        self._replies: dict[int, float] = {}

    def device(self, rank: int) -> DeviceType:
        """A rank's device as the engine's kernels find it."""
        known = self.cluster.device(rank).type
        if id(known) not in self._seen:
            self._seen[id(known)] = self.costs.seen(known)
        return self._seen[id(known)]

    def _ranks(self, pp: int) -> list[int]:
        degrees = self.layout.degrees
        return [degrees.rank(tp, pp, self.replica) for tp in range(degrees.tp_of(pp))]

    def step(self, work: StepWork) -> StepTime:
        communication = imbalance = 0.0
        sent, busy = 0, []
        for stage in self._stages:
            fixed = stage.fixed(work.tokens, work.sequences, work.rows, work.chunks > 0)
            computed = fixed.compute + stage.attention(work)
            moved = fixed.communication + stage.late(fixed, computed)
            busy.append(max(fixed.launch, computed + moved) + stage.receiving_seconds)
            communication += moved + stage.receiving_seconds
            imbalance += fixed.imbalance
            sent = max(sent, fixed.sent)
        busy[0] += self._host.step(work.sequences, 0)
        busy[-1] += self._stages[-1].sampling(work.rows * self.layout.spec.vocabulary)
        back = self._back(work.rows)
        passage = Passage(tuple(busy), back)
        return StepTime(passage.seconds, max(busy), communication + back, sent, imbalance, passage)

    def _back(self, rows: int) -> float:
        """The tokens' way to the leader: as long as a small message's."""
        if len(self._stages) == 1:
            return 0.0
        if rows not in self._replies:
            degrees = self.layout.degrees
            last, leader = (degrees.rank(0, pp, self.replica) for pp in (degrees.pp - 1, 0))
            size = rows * _REPLY_BYTES
            self._replies[rows] = self.cluster.message_seconds(size, last, leader)
        return self._replies[rows]

    def round_seconds(self, work: StepWork, batches: int, batch_tokens: int | None = None) -> float:
        """Until every sequence of `work` has had its step, as up to `batches` in flight of at most
        `batch_tokens` (a long prompt may be in several). A full pipeline takes as long as its
        slowest stage has for all batches, and none is through sooner than the one with most to
        compute."""
        most = batch_tokens or work.tokens
        count = min(batches, max(work.sequences, -(-work.tokens // most)))
        if count <= 1:
            return self.step(work).seconds
        one = self.step(work.part(count))
        fullest = self.step(work.fullest(count, most)) if work.chunks % count else one
        return max(count * one.slowest_seconds, fullest.seconds)


class _Stage:
    """One stage of a replica: as slow as its slowest rank, where uneven shards show."""

    def __init__(self, model: StepModel, ranks: list[int], pp: int):
        self._model, self._ranks = model, ranks
        layout = model.layout
        shapes = [(rank_kernels(layout, r), model.device(r)) for r in ranks]
        self._alike = [(s, shapes.count(s)) for i, s in enumerate(shapes) if s not in shapes[:i]]
        self._layers = len(layout.stages[pp].layers)
        self._overheads = model.costs.overheads_on(model.device(ranks[0]))
        self.receiving_seconds = self._overheads.way_seconds if pp else 0.0
        rates = [_attention_rates(model, kernels, device) for (kernels, device), _ in self._alike]
        self._pair, self._cached = max(rates)
        self._busiest = max(ranks, key=lambda r: len(layout.degrees.receivers(r)))
        self._known: dict[tuple[int, int, int, bool], _Fixed] = {}
        self._calls: dict[tuple[str, int, tuple[int, ...], Launch], float] = {}

    def attention(self, work: StepWork) -> float:
        return self._pair * work.pairs + self._cached * work.cached

    def sampling(self, logits: int) -> float:
        return logits * self._overheads.logit_seconds

    def late(self, fixed: _Fixed, computed_seconds: float) -> float:
        """What the ranks wait for the last of them, all together."""
        if len(self._ranks) == 1:
            return 0.0
        return self._overheads.late(fixed.collectives, computed_seconds)

    def fixed(self, tokens: int, sequences: int, rows: int, eager: bool) -> _Fixed:
        key = (tokens, sequences, rows, eager)
        if key not in self._known:
            self._known[key] = self._fixed(*key)
        return self._known[key]

    def _fixed(self, tokens: int, sequences: int, rows: int, eager: bool) -> _Fixed:
        computed = [
            (self._compute(kernels, device, tokens, sequences, rows), count)
            for (kernels, device), count in self._alike
        ]
        most = max(seconds for seconds, _ in computed)
        mean = sum(seconds * count for seconds, count in computed) / len(self._ranks)
        communication, sent, collectives = self._communication(tokens, rows, eager)
        launch = self._layers * self._model.costs.eager_layer_seconds if eager else 0.0
        return _Fixed(most, most - mean, communication, sent, collectives, launch)

    def _compute(
        self, kernels: RankKernels, device: DeviceType, tokens: int, sequences: int, rows: int
    ) -> float:
        """Seconds of one rank. Of split tokens it has its share in norms and sums alone."""
        model, ranks = self._model, len(self._ranks)
        seconds = _compute_seconds(model, kernels, device, tokens, sequences, rows)
        if not splits_tokens(tokens, ranks, model.split_tokens):
            return seconds
        spared = tokens * (1 - 1 / ranks) * NORM_PASSES * model.layout.spec.hidden
        moved = spared * model.formats.compute.bytes
        return seconds - self._layers * moved / model.costs.elementwise_bytes_per_second(device)

    def _communication(self, tokens: int, rows: int, eager: bool) -> tuple[float, int, int]:
        """Seconds, bytes sent and collectives of the rank that has most: all call the same in
        their group, and some send on to more ranks than others."""
        model, launch = self._model, self._launch(eager)
        called = step_collectives(
            model.layout, self._busiest, model.formats, tokens, rows, model.split_tokens
        )
        seconds = sum(
            calls * self._seconds(c, ranks, launch)
            for c in called
            for calls, ranks in called_among(c, model.layout, self._busiest)
        )
        collectives = sum(c.calls for c in called if c.axis == "tp")
        return seconds, sum(c.calls * c.sent_bytes for c in called), collectives

    def _launch(self, eager: bool) -> Launch:
        return "graph" if self._model.costs.graph and not eager else "eager"

    def _seconds(self, c: Collective, ranks: tuple[int, ...], launch: Launch) -> float:
        key = (c.op, c.full_bytes, ranks, launch)
        if key not in self._calls:
            self._calls[key] = self._model.cluster.collective_seconds(
                c.op, c.full_bytes, ranks, launch, custom=self._model.costs.one_shot
            )
        return self._calls[key]


def _compute_seconds(
    model: StepModel,
    kernels: RankKernels,
    device: DeviceType,
    tokens: int,
    sequences: int,
    rows: int,
) -> float:
    """Products and small kernels of a rank's stage."""
    formats, costs = model.formats, model.costs
    own = costs.overheads_on(device)
    weights = formats.weights.name
    narrow = weights == "fp8" and weights in device.flops_per_second
    arithmetic = weights if narrow else formats.compute.name
    start = own.layer_seconds + sequences * own.layer_sequence_seconds
    moved = tokens * formats.compute.bytes / costs.elementwise_bytes_per_second(device)
    seconds = products = 0.0
    for layer, count in kernels.layers:
        one = sum(
            device.product_seconds(tokens, out, into, weights, arithmetic)
            for out, into in layer.products
        )
        products += count * one
        seconds += count * (layer.passes * moved + start)
    if kernels.head and rows:
        head = device.product_seconds(rows, *kernels.head, formats.head.name, formats.compute.name)
        products += head / (own.plain_product_share if kernels.shared_head else 1.0)
    return seconds + products


def _attention_rates(
    model: StepModel, kernels: RankKernels, device: DeviceType
) -> tuple[float, float]:
    """Seconds per query-key pair and per cached token."""
    costs, formats = model.costs, model.formats
    flops = sum(count * layer.pair_flops for layer, count in kernels.layers)
    read = sum(count * layer.cached for layer, count in kernels.layers) * formats.kv_cache.bytes
    return (
        flops / costs.attention_flops_per_second(device, formats.compute.name),
        read / costs.cache_bytes_per_second(device),
    )


def unlike_replicas(layout: Layout, cluster: Cluster) -> list[tuple[int, int]]:
    """The first replica of each kind of devices, and how many are of its kind."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for dp in range(layout.degrees.dp):
        names = tuple(cluster.device(r).type.name for r in layout.degrees.replica(dp))
        kinds.setdefault(names, []).append(dp)
    return [(replicas[0], len(replicas)) for replicas in kinds.values()]
