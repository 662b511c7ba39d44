"""What ranks that compute together lose by waiting for the last of them.

A stage of layers, split over all ranks as a model's would be, is run with its collectives and
without them in turns; so many collectives alone are timed beside it. Between hosts a collective
takes longer beside computing than alone, and that is the network's: there the ranks' clocks say who
waited for whom.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from parallel.calibration.bench import Peers
from parallel.calibration.overheads import JointPoint
from parallel.collectives.clocks import RankClock
from parallel.collectives.mesh import Mesh
from parallel.hardware.facts import Cluster
from parallel.instrument.ledger import Ledger
from parallel.instrument.spans import Spans
from parallel.layout.degrees import Degrees
from parallel.runtime.layer_timing import StepCase, step_message
from parallel.runtime.rehearsal import Geometry, RandomWorker, random_plan

CASES = (StepCase(1, 128), StepCase(4, 128), StepCase(16, 128), StepCase(1, 128, 128))
_LEAST_ROUNDS, _MOST_ROUNDS = 5, 25
_VOCABULARY = 64
_RUNS = 2
"""Of the three, those that run collectives."""
_PER_LAYER = 2
"""Collectives of a layer: after attention and after the FFN."""


def measure_joint(
    mesh: Mesh,
    peers: Peers,
    cluster: Cluster,
    cold_bytes: int,
    budget_seconds: float,
    clock: RankClock | None = None,
) -> list[JointPoint]:
    """One point for each case, of the rank that took longest; nothing on a rank alone. `clock` is
    that of ranks on several hosts."""
    ranks = mesh.tp.size
    if ranks == 1:
        return []
    seconds = max(peers.most(_collective_seconds(mesh)))
    affordable = int(budget_seconds / (len(CASES) * _LEAST_ROUNDS * _RUNS * _PER_LAYER * seconds))
    stage = _JointStage(mesh, cluster, cold_bytes, max(2, affordable))
    found = []
    for case in CASES:
        p = stage.measure(case, peers, budget_seconds / len(CASES))
        most = peers.most([p.seconds, p.muted_seconds, p.collectives_seconds])
        found.append(
            JointPoint(
                p.collectives,
                most[0],
                most[1],
                most[2],
                p.full_bytes,
                None if clock is None else stage.waited(case, peers, clock),
            )
        )
    return found


def _collective_seconds(mesh: Mesh) -> list[float]:
    """Of a few small ones, one after the other."""
    array = mesh.device.zeros((1, 1024), torch.bfloat16)
    found = []
    for _ in range(_LEAST_ROUNDS):
        mesh.device.synchronize()
        began = time.monotonic()
        mesh.tp.all_reduce(array, "ffn")
        mesh.device.synchronize()
        found.append(time.monotonic() - began)
    return [median(found)]


class _JointStage:
    def __init__(self, mesh: Mesh, cluster: Cluster, cold_bytes: int, most_layers: int):
        ranks = mesh.tp.size
        geometry = Geometry(1024, 8 * ranks, 2 * ranks, 1408 * ranks)
        layers = max(2, min(most_layers, -(-cold_bytes * ranks // geometry.layer_bytes)))
        self.plan = random_plan(geometry, layers, _VOCABULARY, Degrees(tp=ranks), cluster)
        self.mesh, self.device = mesh, mesh.device
        self._begin = mesh.device.zeros((1, geometry.hidden), torch.bfloat16)
        self.worker = RandomWorker(self.plan, mesh.rank, mesh, mesh.device, Ledger())
        self.worker.load(lambda _: None)

    def measure(self, case: StepCase, peers: Peers, budget_seconds: float) -> JointPoint:
        """Medians: what a rank waits is the mean of others' delays, not their least."""
        runs = (self._joined, self._muted, self._collectives)
        (first,) = peers.most([sum(self._timed(run, case) for run in runs)])
        rounds = max(_LEAST_ROUNDS, min(_MOST_ROUNDS, round(budget_seconds / first)))
        found: list[list[float]] = [[] for _ in runs]
        for _ in range(rounds):
            for run, seconds in zip(runs, found, strict=True):
                peers.align()
                seconds.append(self._timed(run, case))
        collectives = _PER_LAYER * len(self.worker.model.blocks)
        size = case.work.tokens * self.plan.layout.spec.hidden * self.worker.compute.itemsize
        whole, muted, alone = map(median, found)
        return JointPoint(collectives, whole, muted, alone, size)

    def waited(self, case: StepCase, peers: Peers, clock: RankClock) -> float:
        """Median seconds that the rank with most to compute waits for others: the one that waits
        least."""
        clock.measure()
        return median(self._waits(case, peers, clock) for _ in range(_LEAST_ROUNDS))

    def _waits(self, case: StepCase, peers: Peers, clock: RankClock) -> float:
        peers.align()
        ledger = Ledger(spans=Spans(1 + _PER_LAYER * len(self.worker.model.blocks)))
        with self.mesh.tp.counting_into(ledger, timed=True):
            ledger.begin_step("joint")
            self._timed(self._joined, case)
        # The first one lets all begin together.
        own = [clock.map.common_ns(r.begin_ns) for r in ledger.spans.last(1)][1:]
        ranks = peers.gather(own)
        last = [max(entered) for entered in zip(*ranks, strict=True)]
        waited: int = min(sum(last) - sum(entered) for entered in ranks)
        return waited / 1e9

    @torch.inference_mode()
    def _timed(self, run: Callable[[StepCase], None], case: StepCase) -> float:
        """All begin together: who was woken late counts with a step, not with its layers."""
        self.mesh.tp.all_reduce(self._begin, "ffn")
        self.device.synchronize()
        began = time.monotonic()
        run(case)
        self.device.synchronize()
        return time.monotonic() - began

    def _joined(self, case: StepCase) -> None:
        step = self.worker.inputs(step_message(case, self.plan))
        self.worker.model(step, self.worker.cache)

    def _muted(self, case: StepCase) -> None:
        self.mesh.tp.muted = True
        try:
            self._joined(case)
        finally:
            self.mesh.tp.muted = False

    def _collectives(self, case: StepCase) -> None:
        tokens = case.work.tokens
        hidden = self.device.zeros((tokens, self.plan.layout.spec.hidden), self.worker.compute)
        for _ in range(_PER_LAYER * len(self.worker.model.blocks)):
            self.mesh.tp.all_reduce(hidden, "ffn")
