"""A workload measured: requests through the engine, then the same steps with communication muted.

The requests are those that the plan's times are predicted for: `concurrency` clients in a closed
loop, lengths around the workload's, random tokens from a fixed seed, no end before the last token.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from parallel.instrument.clock import Began, StepClock
from parallel.planner.load import Load
from parallel.planner.pipeline import spans
from parallel.planner.plan import Plan
from parallel.planner.timing import StepModel
from parallel.planner.work import mean_work, work_of
from parallel.requests.types import Sampling
from parallel.requests.wire import event_from_wire
from parallel.runtime.job import RankJob
from parallel.runtime.sequences import StepMessage
from parallel.runtime.worker import StepResult, Worker

Json = dict[str, Any]
_SEED = 20240607


@dataclass(frozen=True)
class RecordedStep:
    message: StepMessage
    seconds: float


class RecordingWorker(Worker):
    """Keeps its steps, so that they can be run again."""

    recorded: list[RecordedStep] | None = None

    def run(self, message: StepMessage) -> StepResult:
        if self.recorded is None:
            return super().run(message)
        began = time.perf_counter()
        result = super().run(message)
        self.recorded.append(RecordedStep(message, time.perf_counter() - began))
        return result

    def run_muted(self, steps: list[RecordedStep]) -> list[float]:
        """Seconds of each step, run again on this rank alone: nothing is sent or awaited. The
        tokens that come out mean nothing; those that the steps carry are fed as they were."""
        communicators = self.mesh.communicators.values()
        seconds = []
        self.sequences.states.clear()
        for communicator in communicators:
            communicator.muted = True
        try:
            for step in steps:
                began = time.perf_counter()
                super().run(step.message)
                self.device.synchronize()
                seconds.append(time.perf_counter() - began)
        finally:
            for communicator in communicators:
                communicator.muted = False
            self.sequences.states.clear()
        return seconds


class ClosedLoop:
    """A router's channel in memory: each client sends its next request when its last one ended."""

    def __init__(self, load: Load, vocabulary: int, context_tokens: int):
        self._load, self._vocabulary, self._context = load, vocabulary, context_tokens
        self._total = round(load.concurrency * load.rounds)
        self._inbox: deque[Json] = deque()
        self._sent = self._done = 0
        self._arrived: list[float] = []
        self._first = [0.0] * self._total
        self._ended = [0.0] * self._total
        self._tokens = [0] * self._total
        for _ in range(load.concurrency):
            self._submit()

    def _submit(self) -> None:
        number = self._sent
        inputs, outputs = self._load.lengths(number)
        inputs = min(inputs, self._context - 1)
        draw = random.Random(_SEED + number)
        prompt = [draw.randrange(self._vocabulary) for _ in range(inputs)]
        sampling = Sampling(max_tokens=outputs, ignore_eos=True).to_wire()
        self._inbox.append({"type": "submit", "id": number, "prompt": prompt, "sampling": sampling})
        self._arrived.append(time.perf_counter())
        self._sent += 1

    def start(self) -> None:
        """The first requests arrive now."""
        self._arrived = [time.perf_counter()] * len(self._arrived)

    def poll(self, timeout: float | None = 0.0) -> bool:
        return bool(self._inbox) or self._done == self._total

    def receive(self) -> Json:
        return self._inbox.popleft() if self._inbox else {"type": "stop"}

    def send(self, message: Json) -> None:
        now = time.perf_counter()
        for event in map(event_from_wire, message.get("events", ())):
            request = event.request_id
            if event.token >= 0:
                self._tokens[request] += 1
                self._first[request] = self._first[request] or now
            if event.finish_reason is not None:
                self._ended[request] = now
                self._done += 1
                if self._sent < self._total:
                    self._submit()

    def times(self) -> Json:
        """As the plan's, of what was seen."""
        times = self._load.times(self._arrived, self._first, self._ended, self._tokens)
        return {**asdict(times), "requests": self._total, "tokens": sum(self._tokens)}


def measure(job: RankJob, repeats: int, advance: Callable[[str], None]) -> Json | None:
    """Runs the plan's workload `repeats` times in a row, after a first time that isn't counted.
    Every rank calls it; rank 0 gets the report and every rank's entry, see report/step_costs.py.
    `advance` is told what comes next."""
    worker, plan = job.worker, job.plan
    assert isinstance(worker, RecordingWorker)
    everyone = range(plan.layout.degrees.world_size)
    advance("warming up")
    _serve(job, 1)
    job.clock.counts.clear()
    job.clock.course = []
    job.instruments.restart()
    worker.recorded = []
    job.mesh.exchange.barrier("measure", everyone)
    advance("running the workload")
    leader = _serve(job, repeats)
    steps, worker.recorded = worker.recorded, None
    report = job.report("measured")
    job.mesh.exchange.barrier("mute", everyone)
    advance("running the same steps without communication")
    seconds = worker.run_muted(steps)
    at = job.coordinates
    entry = {
        "rank": job.rank,
        "coordinates": {"tp": at.tp, "pp": at.pp, "dp": at.dp},
        "muted": _by_phase(steps, seconds),
        "run": _by_phase(steps, [step.seconds for step in steps]),
        "leader": leader,
    }
    entries = job.mesh.collect("steps", entry)
    if report is None:
        return None
    workload = {**asdict(plan.workload), "repeats": repeats}
    return {"workload": workload, "report": report, "ranks": entries}


def _serve(job: RankJob, rounds: int) -> Json | None:
    """One run of the engine; what its leader counted."""
    worker, plan = job.worker, job.plan
    degrees, workload = plan.layout.degrees, plan.workload
    worker.sequences.states.clear()
    if not job.is_leader:
        job.follow()
        return None
    here = -(-workload.concurrency // degrees.dp)
    load = Load(here, workload.input_tokens, workload.output_tokens, rounds=rounds)
    loop = ClosedLoop(load, plan.layout.spec.vocabulary, plan.context_tokens)
    began = time.perf_counter()
    loop.start()
    engine = job.lead(loop)
    wall = time.perf_counter() - began
    steps = getattr(worker, "recorded", None) or []
    return {
        "wall_seconds": wall,
        "run_seconds": sum(step.seconds for step in steps),
        "reply_seconds": engine.reply_seconds,
        "phases": predicted_costs(plan, job.clock),
        "requests": loop.times(),
        "predicted": asdict(plan.load_over(rounds)),
    }


def _by_phase(steps: list[RecordedStep], seconds: list[float]) -> Json:
    out: Json = {}
    for step, took in zip(steps, seconds, strict=True):
        entry = out.setdefault(step.message.phase, {"steps": 0, "tokens": 0, "seconds": 0.0})
        entry["steps"] += 1
        entry["tokens"] += sum(chunk.count for chunk in step.message.chunks)
        entry["seconds"] += took
    return out


def predicted_costs(plan: Plan, clock: StepClock) -> Json:
    """Steps by phase as the clock saw them, and what the plan's model says of the same steps, in a
    pipeline in the same order; swapping blocks counts."""
    model = StepModel(plan.layout, plan.cluster, plan.formats, split_tokens=plan.split_tokens)
    move, spent = plan.move_seconds(), {}
    if plan.layout.degrees.pp > 1 and clock.course:
        spent = _in_course(model, clock.course, move)
    out: Json = {}
    for phase, shapes in clock.phases():
        sums = dict.fromkeys(("seconds", "communication_seconds", "imbalance_seconds"), 0.0)
        for shape, count in shapes:
            step = model.step(mean_work(shape, count))
            sums["seconds"] += count.steps * step.seconds + count.swapped * move
            sums["communication_seconds"] += count.steps * step.communication_seconds
            sums["imbalance_seconds"] += count.steps * step.imbalance_seconds
        sums["seconds"] = spent.get(phase, sums["seconds"])
        out[phase] = {
            "steps": sum(c.steps for _, c in shapes),
            "tokens": sum(c.steps * s.tokens for s, c in shapes),
            "rows": sum(c.steps * s.rows for s, c in shapes),
            "seconds": sum(c.seconds for _, c in shapes),
            "predicted": sums,
        }
    return out


def _in_course(model: StepModel, course: list[Began], move_seconds: float) -> dict[str, float]:
    """Predicted seconds by phase, each step behind those that were ahead of it. All stages swap
    their blocks as the step begins."""
    passages = []
    for step in course:
        passage = model.step(work_of(step)).passage
        first, *others = passage.busy
        first += step.contexts.swapped * move_seconds
        passages.append(replace(passage, busy=(first, *others), ahead=step.ahead))
    spent: dict[str, float] = {}
    for step, (began, ended) in zip(course, spans(passages), strict=True):
        spent[step.shape.phase] = spent.get(step.shape.phase, 0.0) + ended - began
    return spent
