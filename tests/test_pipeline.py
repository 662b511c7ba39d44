"""No stage waits for a batch while another one is ready: the leader's loop with stand-ins for its
ranks, on a clock that only their work moves."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.pipeline import measure
from parallel.collectives.control import ControlChannel
from parallel.instrument.clock import StepClock
from parallel.kernels.sampling import Choice
from parallel.layout.degrees import Degrees
from parallel.planner.limits import EngineLimits
from parallel.planner.pipeline import Passage, spans
from parallel.planner.search import Wanted
from parallel.requests.types import Sampling
from parallel.requests.wire import event_from_wire
from parallel.runtime.engine import Engine
from parallel.runtime.sequences import Sequences, StepMessage
from parallel.runtime.worker import StepResult, Worker
from tests.specs import toy_planner

TOKENS = 12
Interval = tuple[int, int, int]
"""Serial, begin and end on the stand-ins' clock."""


class Stages:
    """Ranks whose stages take so many ticks for every batch, in the order in which they get them.
    As the worker it is the first of them, as the control channel the others; as the router it
    hands a request over once its tick has come."""

    rank = 0

    def __init__(self, ticks: list[int], arrivals: dict[int, int]):
        self.ticks, self.now = ticks, 0
        self.work: list[list[Interval]] = [[] for _ in ticks]
        self.sequences = Sequences()
        self.stage = self.tracer = self
        self.head = False
        self._replies: deque[tuple[int, dict[str, Any]]] = deque()
        self._arrivals = deque(sorted((at, i) for i, at in arrivals.items()))
        self._running = len(arrivals)
        self.engine: Engine | None = None
        self.waits: list[tuple[int, int]] = []
        """Where the leader waited for tokens: batches in flight, requests that it could have put
        into another one."""

    # -------------------------------------------------------------- worker

    def run(self, message: StepMessage) -> StepResult:
        self.sequences.apply(message)
        ready = self.now
        for done, ticks in zip(self.work, self.ticks, strict=True):
            begin = max(ready, done[-1][2] if done else 0)
            ready = begin + ticks
            done.append((message.serial, begin, ready))
        self.now = self.work[0][-1][2]
        choices = {c.id: Choice(7, None, ()) for c in message.chunks if c.samples}
        self._replies.append((ready, StepResult(message.serial, choices).to_wire()))
        return StepResult(message.serial, {})

    def awaited(self, name: str, run: Any) -> Any:
        return run()

    # -------------------------------------------------------------- control channel

    def broadcast(self, message: dict[str, Any]) -> None:
        return

    def has_reply(self, rank: int, timeout_seconds: float) -> bool:
        if self._replies[0][0] > self.now:
            self._wait(self.now + 1)
        return self._replies[0][0] <= self.now

    def reply_of(self, rank: int) -> dict[str, Any]:
        if self._replies[0][0] > self.now:
            self._wait(self._replies[0][0])
        return self._replies.popleft()[1]

    def _wait(self, until: int) -> None:
        assert self.engine is not None
        scheduler = self.engine.scheduler
        ready = sum(s.pending > 0 for s in scheduler.running.values()) + len(scheduler.waiting)
        ready += sum(at <= self.now for at, _ in self._arrivals)
        self.waits.append((len(self._replies), ready))
        self.now = until

    # -------------------------------------------------------------- router

    def poll(self, timeout: float | None = 0.0) -> bool:
        if timeout is None and self._arrivals:
            self.now = max(self.now, self._arrivals[0][0])
        return self._running == 0 or bool(self._arrivals and self._arrivals[0][0] <= self.now)

    def receive(self) -> dict[str, Any]:
        if self._running == 0:
            return {"type": "stop"}
        sampling = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
        request_id = self._arrivals.popleft()[1]
        body = {"type": "submit", "id": request_id, "prompt": [1, 2, 3, request_id]}
        return {**body, "sampling": sampling.to_wire()}

    def send(self, message: dict[str, Any]) -> None:
        ended = (event_from_wire(row).finish_reason for row in message["events"])
        self._running -= sum(reason is not None for reason in ended)


def run(
    ticks: list[int],
    arrivals: dict[int, int],
    made: Stages | None = None,
    clock: StepClock | None = None,
) -> Stages:
    limits = EngineLimits(step_tokens=128, requests=16, prefix_cache=False)
    plan = toy_planner(limits=limits).plan(Degrees(pp=len(ticks)), Wanted())
    stages = made or Stages(ticks, arrivals)
    engine = Engine(
        plan,
        cast(Worker, stages),
        cast(ControlChannel, stages),
        stages,
        clock or StepClock(),
        lambda: {},
    )
    stages.engine = engine
    engine.run()
    assert engine.scheduler.idle
    return stages


@pytest.mark.parametrize("ticks", [[5, 5], [3, 8], [8, 3], [4, 4, 4], [2, 9, 5], [9, 2, 5]])
def test_the_slowest_stage_never_waits(ticks: list[int]) -> None:
    """With a batch of four requests for each stage: one batch after the other from its first to
    its last, and every batch a token of each request."""
    count = len(ticks)
    stages = run(ticks, dict.fromkeys(range(4 * count), 0))
    slowest = stages.work[ticks.index(max(ticks))]
    assert [serial for serial, _, _ in slowest] == list(range(count * TOKENS))
    assert all(end == begin for (_, _, end), (_, begin, _) in pairwise(slowest))
    whole = sum(ticks) + (count * TOKENS - 1) * max(ticks)
    assert stages.work[-1][-1][2] == whole


@pytest.mark.parametrize("ticks", [[5, 5], [3, 8], [8, 3], [3, 4, 9]])
def test_the_leader_waits_only_with_nothing_to_compute(ticks: list[int]) -> None:
    """Requests come while others run: when it waits, every batch that there may be is in flight, or
    no request is left out."""
    stages = run(ticks, {0: 0, 1: 1, 2: 17, 3: 40, 4: 41, 5: 90})
    assert stages.waits
    assert all(flying == len(ticks) or not ready for flying, ready in stages.waits)


class SlowPrompts(Stages):
    """A batch with a prompt takes as many times longer."""

    def __init__(self, ticks: list[int], requests: int, times: int):
        super().__init__(ticks, dict.fromkeys(range(requests), 0))
        self._short, self._long = ticks, [times * t for t in ticks]

    def run(self, message: StepMessage) -> StepResult:
        self.ticks = self.ticks_of(message.phase)
        return super().run(message)

    def ticks_of(self, phase: str) -> list[int]:
        return self._long if phase == "prefill" else self._short


@given(
    ticks=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    requests=st.integers(1, 9),
    times=st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
def test_steps_are_predicted_in_their_course(ticks: list[int], requests: int, times: int) -> None:
    """What the leader's clock saw of each phase, from the stages' times and the order alone."""
    stages = SlowPrompts(ticks, requests, times)
    clock = StepClock(lambda: stages.now, course=[])
    run(ticks, {}, stages, clock)
    assert clock.course
    passages = [Passage(tuple(stages.ticks_of(s.shape.phase)), ahead=s.ahead) for s in clock.course]
    predicted: dict[str, float] = {}
    for step, (began, ended) in zip(clock.course, spans(passages), strict=True):
        phase = step.shape.phase
        predicted[phase] = predicted.get(phase, 0.0) + ended - began
    seen = {phase: sum(c.seconds for _, c in shapes) for phase, shapes in clock.phases()}
    assert predicted == seen


def test_the_way_back_keeps_nobody_busy() -> None:
    """Two batches in turns: a round lasts until the first one's tokens are there."""
    step = Passage((2.0, 3.0), back=5.0)
    found = spans([step, *[replace(step, ahead=1)] * 4])
    assert found == [(0.0, 10.0), (2.0, 13.0), (10.0, 20.0), (13.0, 23.0), (20.0, 30.0)]
    assert step.seconds == 10.0


def test_a_trace_gives_rate_and_idle_time() -> None:
    """Two stages of 4 and 5 ms a batch: a round of two batches takes 10 ms."""
    events: list[dict[str, Any]] = []
    for step in range(1, 21):
        facts = {"ph": "X", "args": {"step": step, "phase": "decode"}}
        own = {"name": f"decode step {step}", "pid": 0, "ts": 5000.0 * step, "dur": 4000.0}
        later = {"name": f"decode step {step}", "pid": 1, "ts": 5000.0 * step + 4000, "dur": 5000.0}
        events += [{**facts, **own}, {**facts, **later}]
    waits = [e for e in events if e["pid"] == 1]
    events += [{**e, "name": "recv stage", "dur": 500.0} for e in waits]
    found = measure(events, 3, 2)
    assert found.tokens_per_second == pytest.approx(600.0)
    assert found.idle == pytest.approx((0.2, 0.1))


class Impatient(Stages):
    """Its first request is cancelled once it has two tokens; another comes when all is quiet."""

    def __init__(self) -> None:
        super().__init__([5], {1: 0, 2: 1000})
        self.head = True
        self._seen = 0

    def run(self, message: StepMessage) -> StepResult:
        super().run(message)
        choices = {c.id: Choice(7, None, ()) for c in message.chunks if c.samples}
        return StepResult(message.serial, choices)

    def poll(self, timeout: float | None = 0.0) -> bool:
        return self._seen == 2 or super().poll(timeout)

    def receive(self) -> dict[str, Any]:
        if self._seen == 2:
            self._seen = 3
            return {"type": "cancel", "id": 1}
        return super().receive()

    def send(self, message: dict[str, Any]) -> None:
        super().send(message)
        self._seen += any(event_from_wire(row).request_id == 1 for row in message["events"])


def test_what_was_cancelled_is_gone_when_the_next_request_comes() -> None:
    """Its last token was never told to the ranks, and must not be told after its end."""
    stages = run([5], {}, Impatient())
    assert stages.sequences.states == {}
    assert len(stages.work[0]) == 2 + TOKENS
