"""What ranks that compute together lose by waiting for the last of them.

A stage of layers, split over all ranks as a model's would be, is run with its collectives and
without them in turns; so many collectives alone are timed beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from parallel.calibration.bench import Peers
from parallel.calibration.overheads import JointPoint
from parallel.collectives.mesh import Mesh
from parallel.hardware.facts import Cluster
from parallel.instrument.ledger import Ledger
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
    mesh: Mesh, peers: Peers, cluster: Cluster, cold_bytes: int, budget_seconds: float
) -> list[JointPoint]:
    """One point for each case, of the rank that took longest; nothing on a rank alone."""
    ranks = mesh.tp.size
    if ranks == 1:
        return []
    seconds = max(peers.most(_collective_seconds(mesh)))
    affordable = int(budget_seconds / (len(CASES) * _LEAST_ROUNDS * _RUNS * _PER_LAYER * seconds))
    stage = _JointStage(mesh, cluster, cold_bytes, max(2, affordable))
    points = [stage.measure(case, peers, budget_seconds / len(CASES)) for case in CASES]
    return [
        JointPoint(
            p.collectives,
            *peers.most([p.seconds, p.muted_seconds, p.collectives_seconds]),
        )
        for p in points
    ]


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
        return JointPoint(collectives, *map(median, found))

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
