"""The router: which replica gets a request, what comes back, and leaders that are lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest

from parallel.errors import RequestError, RunError
from parallel.requests.placing import Ask, QueueFull
from parallel.requests.router import Router
from parallel.requests.types import Sampling, TokenEvent
from parallel.requests.wire import (
    connect,
    listen,
)
from tests.fake_engine import FakeEngine, make_facts

KEY = b"secret"


class Job:
    """A router with fake leaders; collects what comes."""

    def __init__(self, replicas: int):
        self.lost: list[str] = []
        self.queued: list[float] = []
        self.events: list[TokenEvent] = []
        listener = listen("127.0.0.1", KEY)
        self.router = Router(listener, replicas, self.lost.append, on_queued=self.queued.append)
        self.engines = [
            FakeEngine(listener.address, KEY, make_facts(300) | {"r": r}, r, replicas)
            for r in range(replicas)
        ]

    def start(self) -> Job:
        for engine in reversed(self.engines):
            engine.start()
        assert self.router.wait_ready(20)
        return self

    def submit(self, prompt: list[int], **sampling: int) -> int:
        return self.router.submit(prompt, Sampling(**sampling), self.events.append)

    def tokens(self, request_id: int) -> list[int]:
        return [e.token for e in self.events if e.request_id == request_id]


@pytest.fixture
def job(request: pytest.FixtureRequest) -> Iterator[Job]:
    made = Job(getattr(request, "param", 1)).start()
    yield made
    made.router.stop()
    for engine in made.engines:
        engine.join()


def test_tokens_come_back_to_who_asked(job: Job) -> None:
    first = job.submit([5, 6, 7], max_tokens=2)
    second = job.submit([8, 9], max_tokens=9)
    assert job.router.drain(20)
    assert job.tokens(first) == [5, 6] and job.tokens(second) == [8, 9, 1]
    assert [e.finish_reason for e in job.events if e.finish_reason] == ["length", "stop"]
    assert job.router.facts["model"] == "fake"
    assert set(job.queued) == {0.25}
    (status,) = job.router.status()
    assert (status.requests, status.work_tokens, status.waiting) == (0, 0, 0)


@pytest.mark.parametrize("job", [3], indirect=True)
def test_work_goes_where_least_is_left(job: Job) -> None:
    assert job.router.facts["r"] == 0
    for engine in job.engines:
        engine.hold()
    job.submit([1] * 50, max_tokens=100)
    job.submit([1] * 5, max_tokens=10)
    for _ in range(4):
        job.submit([1, 2], max_tokens=3)
    for engine in job.engines:
        engine.wait_for(lambda engine=engine: engine.running > 0)
    assert [s.requests for s in job.router.status()] == [1, 2, 3]
    assert [s.work_tokens for s in job.router.status()] == [150, 20, 15]
    assert sum(s.waiting for s in job.router.status()) == 6
    for engine in job.engines:
        engine.release()
    assert job.router.drain(20)
    assert [s.work_tokens for s in job.router.status()] == [0, 0, 0]
    assert [answer["ranks"] for answer in job.router.report(20)] == [[0], [1], [2]]
    assert job.router.ping(20)


@pytest.mark.parametrize("job", [3], indirect=True)
def test_a_follow_up_goes_where_its_beginning_is_unless_too_much_waits_there(job: Job) -> None:
    session = list(range(40))

    def sent(replica: int) -> list[int]:
        engine = job.engines[replica]
        return [len(s["prompt"]) for s in engine.submitted]

    for engine in job.engines[:2]:
        engine.hold()
    keep = job.submit([9] * 5, max_tokens=2), job.submit([8] * 5, max_tokens=2)
    job.submit(session, max_tokens=2)
    job.engines[2].wait_for(lambda: len(sent(2)) == 1)
    for number in keep:
        job.router.cancel(number)
    for engine in job.engines[:2]:
        engine.release()
    assert job.router.drain(20)
    # All are idle: alone its prefix tells where it goes.
    job.submit([*session, 1, 2, 3], max_tokens=2)
    assert job.router.drain(20)
    assert sent(2) == [40, 43]
    job.engines[2].hold()
    # It saves 40 tokens there; after this, 50 wait.
    job.submit([*session, *range(50)], max_tokens=2)
    job.engines[2].wait_for(lambda: len(sent(2)) == 3)
    job.submit([*session, 4], max_tokens=2)
    job.engines[0].wait_for(lambda: sent(0) == [5, 41])
    job.engines[2].release()


@pytest.mark.parametrize("job", [2], indirect=True)
def test_sequences_of_one_prompt_go_together(job: Job) -> None:
    def ask(prompt: list[int], count: int) -> Ask:
        return Ask(prompt, [(Sampling(max_tokens=1), job.events.append)] * count, priority=4)

    numbers = job.router.submit_all([ask([1] * 20, 3), ask([2] * 8, 3)])
    assert job.router.drain(20)
    for engine, group in zip(job.engines, numbers, strict=True):
        assert [s["id"] for s in engine.submitted] == group
        assert [(s["group"], s["priority"]) for s in engine.submitted] == [(group[0], 4)] * 3
    assert sorted(e.request_id for e in job.events) == sorted(chain(*numbers))


def test_a_batch_waits_for_places(job: Job) -> None:
    engine = job.engines[0]
    engine.hold()
    numbers: list[int] = []

    def submit() -> None:
        numbers.extend(job.submit([5, 6], max_tokens=1) for _ in range(602))

    thread = threading.Thread(target=submit)
    thread.start()
    engine.wait_for(lambda: engine.running == 600)
    with pytest.raises(QueueFull):
        job.router.submit_all([Ask([1], [(Sampling(), job.events.append)])])
    assert len(numbers) == 600
    engine.release()
    thread.join()
    assert job.router.drain(20)
    assert sorted(e.request_id for e in job.events) == sorted(numbers) and len(numbers) == 602


def test_a_cancelled_request_ends_with_an_event(job: Job) -> None:
    job.engines[0].hold(after_steps=2)
    number = job.submit([5, 6, 7, 8], max_tokens=4)
    job.engines[0].wait_for(lambda: len(job.events) == 2)
    job.router.cancel(number)
    job.router.cancel(number + 99)
    assert job.router.drain(20)
    assert job.events[-1].finish_reason == "cancelled"
    job.router.cancel(number)


def test_questions_without_answer_end_in_time(job: Job) -> None:
    job.engines[0].answers = False
    assert not job.router.ping(0.05)
    with pytest.raises(RunError, match="no answer to 'report'"):
        job.router.report(0.05)
    job.engines[0].answers = True


@pytest.mark.parametrize("job", [2], indirect=True)
def test_a_lost_leader_fails_its_requests_and_is_told_once(job: Job) -> None:
    for engine in job.engines:
        engine.hold()
    doomed = job.submit([1, 2], max_tokens=9)
    other = job.submit([3, 4], max_tokens=9)
    job.engines[0].die()
    job.engines[0].wait_for(lambda: len(job.lost) == 1)
    (failed,) = job.events
    assert (failed.request_id, failed.finish_reason) == (doomed, "error")
    assert "replica 0 was lost" in (failed.message or "")
    with pytest.raises(RunError, match="replica 0 was lost"):
        job.submit([1], max_tokens=1)
    assert not job.router.ping(1)
    job.engines[1].release()
    assert job.router.drain(20)
    assert job.tokens(other) == [3, 4, 1]
    job.engines[1].die()
    assert len(job.lost) == 1


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"type": "hello"}, {}, "no hello"),
        ({"type": "hello", "replica": 5, "facts": {}}, {}, "called itself replica 5"),
        (
            {"type": "hello", "replica": 0, "facts": {}},
            {"type": "tokens", "events": [[1, 2]]},
            "can't be read",
        ),
    ],
)
def test_a_leader_that_talks_nonsense_is_given_up(
    first: dict[str, object], second: dict[str, object], reason: str
) -> None:
    job = Job(1)
    channel = connect(job.engines[0].address, KEY)
    channel.send(first)
    if second:
        channel.send(second)
    job.engines[0].wait_for(lambda: bool(job.lost))
    assert reason in job.lost[0]
    job.router.stop()
    channel.close()


def test_a_leader_lost_while_loading_is_no_endless_wait() -> None:
    job = Job(2)
    engine = job.engines[0].start()
    engine.wait_for(lambda: len(job.router.status()) == 1)
    assert not job.router.wait_ready(0.01)
    engine.die()
    with pytest.raises(RunError, match="was lost"):
        job.router.wait_ready(20)
    job.router.stop()


def test_a_second_leader_of_one_replica_is_refused() -> None:
    job = Job(1).start()
    twin = FakeEngine(job.engines[0].address, KEY, make_facts(300)).start()
    twin.wait_for(lambda: bool(job.lost))
    assert "called itself replica 0" in job.lost[0]
    job.router.stop()
    twin.join()
    with pytest.raises(RunError):
        job.router.submit([1], Sampling(), lambda _: None)


@pytest.mark.parametrize(
    "values",
    [
        {"max_tokens": 2.5},
        {"top_k": 1.0},
        {"seed": 1.5},
        {"seed": 1 << 100},
        {"seed": True},
        {"logprobs": 2.5},
        {"stop_token_ids": ["a"]},
        {"stop_token_ids": [1 << 70]},
        {"repetition_penalty": float("inf")},
    ],
    ids=str,
)
def test_sampling_that_no_rank_could_use_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as found:
        Sampling.from_wire(values)
    assert found.value.param == next(iter(values))
