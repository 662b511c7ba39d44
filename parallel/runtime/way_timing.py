"""What a stage of a pipeline takes to receive a batch, beyond its bytes.

A pipeline of all ranks is really run, full. Beside it are timed: each stage with nothing to send
or await, and a message's way through all stages and back while nobody computes. What a step takes
longer than both are threads that must wake while others compute: a transfer begins when its
receiver asks for it, and the sender is at its next batch by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from parallel.calibration.bench import MOST_BUDGETS, Peers
from parallel.calibration.overheads import WayPoint
from parallel.collectives.mesh import Mesh
from parallel.hardware.facts import Cluster
from parallel.instrument.clock import StepClock
from parallel.instrument.ledger import Ledger
from parallel.layout.degrees import Degrees
from parallel.runtime.engine import Engine
from parallel.runtime.job import RankJob, follow
from parallel.runtime.layer_timing import StepCase, step_message
from parallel.runtime.rehearsal import SEQUENCES, Geometry, RandomWorker, random_plan
from parallel.runtime.sequences import StepMessage
from parallel.runtime.step_timing import Prompts
from parallel.runtime.worker import StepResult

_GEOMETRY = Geometry(1024, 16, 4, 2816)
_VOCABULARY = 64
_CONTEXT = 32
_BATCHES = (1, 4)
"""Sequences in each batch."""
_LEAST_REPEATS, _MOST_REPEATS = 2, 5
_ROUNDS = 5
_LEAST_LAYERS, _MOST_LAYERS = 2, 8
"""Of a stage. It should take longer than a scheduler's time slice, as a real model's does."""
_LAYERS_PER_SECOND = 16
"""Of the time allowed."""


class TimedWorker(RandomWorker):
    """Adds up the seconds of its steps."""

    spent_seconds = 0.0

    def run(self, message: StepMessage) -> StepResult:
        began = time.monotonic()
        result = super().run(message)
        self.spent_seconds += time.monotonic() - began
        return result


def measure_ways(
    job: RankJob, mesh: Mesh, peers: Peers, cluster: Cluster, budget_seconds: float
) -> list[WayPoint]:
    """What the leader saw, some points for each size of a batch; empty on its followers and on a
    rank alone. `mesh` has all of the job's ranks as stages."""
    if mesh.pp.size == 1:
        return []
    layers = max(_LEAST_LAYERS, min(_MOST_LAYERS, int(budget_seconds * _LAYERS_PER_SECOND)))
    pipeline = _Pipeline(job, mesh, cluster, layers)
    most = max(1, SEQUENCES // mesh.pp.size)
    sizes = sorted({min(size, most) for size in _BATCHES})
    budget = budget_seconds / len(sizes)
    points = [point for size in sizes for point in pipeline.measure(size, peers, budget)]
    return points if job.is_leader else []


class _Pipeline:
    def __init__(self, job: RankJob, mesh: Mesh, cluster: Cluster, layers: int):
        self.job, self.mesh, self.device = job, mesh, mesh.device
        stages = mesh.pp.size
        degrees = Degrees(pp=stages)
        self.plan = random_plan(_GEOMETRY, stages * layers, _VOCABULARY, degrees, cluster)
        self.worker = TimedWorker(self.plan, mesh.rank, mesh, mesh.device, Ledger())
        self.worker.load(lambda _: None)

    def measure(self, size: int, peers: Peers, budget_seconds: float) -> list[WayPoint]:
        """One point each time: what it is compared with was measured just before, since a machine
        that others use isn't as fast at all times."""
        message = step_message(StepCase(size, _CONTEXT), self.plan)
        found: list[WayPoint] = []
        began = time.monotonic()
        for repeat in range(_MOST_REPEATS):
            in_time = time.monotonic() - began < MOST_BUDGETS * budget_seconds
            if not peers.agree(repeat < _LEAST_REPEATS or in_time):
                break
            alone = peers.gather(median(self._rounds(lambda: self._muted(message))))
            sends = median(self._rounds(lambda: self._sends(size)))
            peers.align()
            seconds, in_flight, host = self._served(size * self.mesh.pp.size)
            path = sum(alone) + host + sends
            found.append(WayPoint(self.mesh.pp.size, in_flight, seconds, max(alone[1:]), path))
        return found

    def _rounds(self, run: Callable[[], None]) -> list[float]:
        """One after the other, while the other ranks do the same."""
        found = []
        for _ in range(_ROUNDS):
            self.device.synchronize()
            began = time.monotonic()
            run()
            self.device.synchronize()
            found.append(time.monotonic() - began)
        return found

    def _muted(self, message: StepMessage) -> None:
        """A decode of this stage alone."""
        self.worker.sequences.states.clear()
        self.mesh.pp.muted = self.mesh.tp.muted = True
        try:
            self.worker.run(message)
        finally:
            self.mesh.pp.muted = self.mesh.tp.muted = False
            self.worker.sequences.states.clear()

    def _sends(self, size: int) -> None:
        """Hidden states through all stages and back."""
        pp, hidden = self.mesh.pp, self.plan.layout.spec.hidden
        array = self.device.zeros((size, hidden), torch.bfloat16)
        if pp.index:
            pp.recv(array, pp.index - 1, "stage")
        pp.send(array, (pp.index + 1) % pp.size, "stage")
        if not pp.index:
            pp.recv(array, pp.size - 1, "stage")

    def _served(self, sequences: int) -> tuple[float, float, float]:
        """Of the decodes on the leader: a step's seconds, steps in flight, and host seconds of a
        step beside what runs it and waiting; nothing that means something elsewhere."""
        control, clock = self.job.control, StepClock()
        self.worker.sequences.states.clear()
        self.worker.spent_seconds = 0.0
        if not self.job.is_leader:
            follow(self.worker, control, dict)
            return 0.0, 0.0, 0.0
        engine = Engine(self.plan, self.worker, control, Prompts(sequences), clock, dict)
        began = time.monotonic()
        try:
            engine.run()
        finally:
            control.broadcast({"op": "stop"})
        wall = time.monotonic() - began
        counts = [c for shape, c in clock.counts.items() if shape.phase == "decode"]
        steps = sum(c.steps for c in counts)
        host = wall - self.worker.spent_seconds - engine.reply_seconds
        return (
            sum(c.seconds for c in counts) / steps,
            1 + sum(c.ahead for c in counts) / steps,
            max(0.0, host / sum(c.steps for c in clock.counts.values())),
        )
