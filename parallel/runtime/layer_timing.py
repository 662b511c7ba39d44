"""What a layer takes beside its products.

The parts of a layer are timed where they are, in a stage whose weights and cache come from memory
as a model's do. Every rank runs a whole stage of its own, all at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from parallel.calibration.bench import MOST_BUDGETS, Peers
from parallel.calibration.overheads import LayerPoint
from parallel.devices.base import Device
from parallel.hardware.facts import Cluster
from parallel.instrument.ledger import Ledger
from parallel.layout.degrees import Degrees
from parallel.models.transformer import Stream, TransformerBlock
from parallel.planner.kernels import rank_kernels
from parallel.planner.plan import Plan
from parallel.planner.work import StepWork
from parallel.requests.types import Sampling
from parallel.runtime.meter import Meter
from parallel.runtime.rehearsal import Geometry, RandomWorker, mesh_along, random_plan
from parallel.runtime.sequences import Chunk, StepMessage

GEOMETRIES = (Geometry(576, 9, 3, 1536), Geometry(1024, 16, 4, 2816))

_LEAST_SECONDS = 0.02
"""A shorter case is run several times in a round."""
_LEAST_OTHER = 0.01
"""Of a layer's time, where the sum of its parts came out larger than the whole."""
_PRODUCTS = 4
_LONG_TOKENS, _FEW_LAYERS = 128, 4


@dataclass(frozen=True)
class StepCase:
    """Decodes of `sequences` at `context` tokens, or one prompt chunk of `tokens` up to there."""

    sequences: int
    context: int
    tokens: int = 1

    @property
    def work(self) -> StepWork:
        if self.tokens == 1:
            return StepWork.decode(self.sequences, self.sequences * self.context)
        return StepWork.prompt(self.tokens, self.context - self.tokens)


CASES = (
    *(StepCase(sequences, context) for sequences in (1, 4, 16) for context in (128, 1024)),
    *(StepCase(1, context, tokens) for tokens, context in ((16, 16), (128, 128), (512, 512))),
    StepCase(1, 1024, 512),
)


def measure_layers(
    device: Device,
    peers: Peers,
    cluster: Cluster,
    cold_bytes: int,
    budget_seconds: float,
    advance: Callable[[float], None],
) -> list[LayerPoint]:
    """One point for each geometry and case; all ranks call it together."""
    found: list[LayerPoint] = []
    for geometry in GEOMETRIES:
        layers = max(2, -(-cold_bytes // geometry.layer_bytes))
        plan = random_plan(geometry, layers, 64, Degrees(), cluster)
        stage = _Stage(plan, device)
        found += stage.measure(peers, budget_seconds / len(GEOMETRIES), advance)
    return found


@dataclass(frozen=True)
class _Samples:
    """Seconds of layers, and of the parts of others, one after the other."""

    whole: list[float]
    products: list[float]
    attention: list[float]


class _Stage:
    def __init__(self, plan: Plan, device: Device):
        self.plan, self.device = plan, device
        self.worker = RandomWorker(plan, 0, mesh_along(device), device, Ledger())
        self.worker.load(lambda _: None)
        self.meter = Meter(device)
        for block in self.worker.model.blocks:
            for linear in (
                block.attention.project,
                block.attention.output,
                block.feed_forward.up,
                block.feed_forward.down,
            ):
                self.meter.watch(linear, "linear", "products")
            self.meter.watch(block.attention, "attend", "attention")

    def measure(
        self, peers: Peers, budget_seconds: float, advance: Callable[[float], None]
    ) -> list[LayerPoint]:
        for case in CASES:
            self._run(case)
        first = peers.most([sum(self._run(case)) for case in CASES])
        runs = [max(1, round(_LEAST_SECONDS / seconds)) for seconds in first]
        once = 2 * sum(n * seconds for n, seconds in zip(runs, first, strict=True))
        rounds = max(3, min(9, int(budget_seconds / once)))
        found = [_Samples([], [], []) for _ in CASES]
        began = time.monotonic()
        for turn in range(rounds):
            in_time = turn == 0 or time.monotonic() - began < MOST_BUDGETS * budget_seconds
            if not peers.agree(in_time):
                advance((1 - turn / rounds) / len(GEOMETRIES))
                break
            for case, count, samples in zip(CASES, runs, found, strict=True):
                peers.align()
                for _ in range(count):
                    samples.whole.extend(self._run(case))
                    self.meter.on = True
                    self._run(case)
                    self.meter.on = False
                    parts = self.meter.take()
                    products = iter(parts["products"])
                    samples.products.extend(map(sum, zip(*[products] * _PRODUCTS, strict=True)))
                    samples.attention.extend(parts["attention"])
            advance(1 / rounds / len(GEOMETRIES))
        return [self._point(case, samples) for case, samples in zip(CASES, found, strict=True)]

    def _point(self, case: StepCase, samples: _Samples) -> LayerPoint:
        ((kernels, _),) = rank_kernels(self.plan.layout, 0).layers
        whole, products, attention = (
            median(s) for s in (samples.whole, samples.products, samples.attention)
        )
        work, width = case.work, self.plan.formats.compute.bytes
        return LayerPoint(
            tokens=work.tokens,
            sequences=case.sequences,
            elementwise_bytes=work.tokens * kernels.passes * width,
            cached_bytes=work.cached * kernels.cached * width,
            attention_flops=work.pairs * kernels.pair_flops,
            shapes=kernels.products,
            products_seconds=products,
            attention_seconds=attention,
            other_seconds=max(_LEAST_OTHER * whole, whole - products - attention),
        )

    def _blocks(self, case: StepCase) -> list[TransformerBlock]:
        """A long chunk computes more than it reads: a few layers tell what all do."""
        blocks = self.worker.model.blocks
        return blocks[:_FEW_LAYERS] if case.tokens >= _LONG_TOKENS else blocks

    @torch.inference_mode()
    def _run(self, case: StepCase) -> list[float]:
        """Seconds of each layer."""
        worker, message = self.worker, step_message(case, self.plan)
        step = worker.inputs(message)
        hidden = self.device.empty((step.tokens, self.plan.layout.spec.hidden), worker.compute)
        stream = Stream(hidden.fill_(0.1))
        self.device.synchronize()
        timers = []
        for block in self._blocks(case):
            timers.append(self.device.timer())
            timers[-1].start()
            block(stream, worker.cache.layers[block.layer], step)
            timers[-1].stop()
        return [timer.seconds() for timer in timers]


def step_message(case: StepCase, plan: Plan) -> StepMessage:
    """A step of sequences that are as far as the case says."""
    size = plan.limits.block_tokens
    needed = -(-case.context // size)
    greedy = Sampling().to_wire()
    joined = [
        (i, [0] * case.context, list(range(i * needed, (i + 1) * needed)), greedy)
        for i in range(case.sequences)
    ]
    begin = case.context - case.tokens
    chunks = [Chunk(i, begin, case.tokens, True) for i in range(case.sequences)]
    return StepMessage(0, "calibration", [], [], joined, chunks)
