"""Any course of events: requests with common beginnings come, go, are preempted and swapped."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from parallel.errors import RequestError
from parallel.requests.types import Request, Sampling
from parallel.scheduling.blocks import BlockManager
from parallel.scheduling.scheduler import Limits, Scheduler
from tests.scheduling_model import EOS, Replica

CONTEXT = 40
TRUNKS = ((1, 1, 1, 1, 1, 1, 1, 1) * 5, (1, 2, 1, 1, 2, 3, 1, 1) * 5, (2, 2, 3, 1) * 10)


class Course(RuleBasedStateMachine):
    """Prompts are beginnings of few texts, of few tokens, so that much is shared by chance."""

    @initialize(
        blocks=st.integers(3, 16),
        block_tokens=st.sampled_from((1, 2, 4, 8)),
        host=st.sampled_from((0, 0, 4, 16)),
        prefix_cache=st.booleans(),
        step_tokens=st.integers(1, 20),
        places=st.integers(1, 6),
        batches=st.integers(1, 3),
        queue=st.sampled_from((None, None, 3)),
        seed=st.integers(0, 1000),
    )
    def begin(
        self,
        blocks: int,
        block_tokens: int,
        host: int,
        prefix_cache: bool,
        step_tokens: int,
        places: int,
        batches: int,
        queue: int | None,
        seed: int,
    ) -> None:
        manager = BlockManager(blocks, block_tokens, host, prefix_cache)
        limits = Limits(step_tokens, places, CONTEXT, batches, queue)
        self.replica = Replica(Scheduler(manager, limits, (EOS,)), seed)
        self.came = 0

    @rule(
        trunk=st.sampled_from(TRUNKS),
        length=st.integers(1, CONTEXT),
        new=st.integers(1, 30),
        priority=st.sampled_from((0, 0, 0, -1, 2)),
        answers=st.sampled_from((1, 1, 1, 2, 4)),
    )
    def add(
        self, trunk: tuple[int, ...], length: int, new: int, priority: int, answers: int
    ) -> None:
        prompt, sampling = trunk[:length], Sampling(max_tokens=new)
        group = self.came if answers > 1 else None
        for _ in range(answers):
            request = Request(self.came, prompt, sampling, priority, group)
            self.came += 1
            try:
                self.replica.add(request)
            except RequestError as error:
                self._refused(error, length, new)

    def _refused(self, error: RequestError, length: int, new: int) -> None:
        scheduler = self.replica.scheduler
        blocks, limits = scheduler.blocks, scheduler.limits
        if error.code == "queue_full":
            alive = len(scheduler.waiting) + len(scheduler.running)
            assert limits.queue is not None and alive == limits.places + limits.queue
            return
        last = min(length + new, CONTEXT)
        too_much = (last - 1) > blocks.total * blocks.block_tokens
        assert error.code == "context_length_exceeded" and (length >= CONTEXT or too_much)

    @precondition(lambda self: self.came > 0)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.replica.cancel(data.draw(st.integers(0, self.came - 1)))

    @rule()
    def schedule(self) -> None:
        replica = self.replica
        if len(replica.flight) < replica.scheduler.limits.batches:
            replica.schedule()

    @rule()
    def complete(self) -> None:
        if self.replica.flight:
            self.replica.complete()

    @precondition(lambda self: not self.replica.scheduler.idle)
    @rule(steps=st.integers(1, 12))
    def steps(self, steps: int) -> None:
        for _ in range(steps):
            if not self.replica.scheduler.idle:
                self.replica.step()

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "replica"):
            self.replica.check()

    def teardown(self) -> None:
        if hasattr(self, "replica"):
            self.replica.drain()


class TestCourse(Course.TestCase):
    settings = settings(max_examples=250, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("seed", range(24))
def test_long_courses_in_a_short_cache(seed: int) -> None:
    """Sixty requests where two or three fit, a tenth of them cancelled at some time."""
    draw = random.Random(seed)
    size = draw.choice((1, 2, 4, 8))
    manager = BlockManager(-(-64 // size), size, draw.choice((0, 96 // size)), seed % 3 > 0)
    limits = Limits(draw.randint(4, 24), draw.randint(3, 8), CONTEXT, draw.randint(1, 3))
    replica = Replica(Scheduler(manager, limits, (EOS,)), seed)
    for number in range(60):
        prompt = draw.choice(TRUNKS)[: draw.randint(1, 30)]
        priority, group = draw.choice((0, 0, 1)), draw.choice((None, None, number // 4))
        sampling = Sampling(max_tokens=draw.randint(1, 38), ignore_eos=draw.random() < 0.8)
        replica.add(Request(number, prompt, sampling, priority, group))
        for _ in range(draw.randint(0, 6)):
            if not replica.scheduler.idle:
                replica.step()
                replica.check()
        if draw.random() < 0.1:
            replica.cancel(draw.randint(0, number))
    replica.drain()
    counts = replica.scheduler.counts
    assert counts.swapped if manager.host_total else counts.recomputed
