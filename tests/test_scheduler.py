"""The scheduler alone: every admitted request ends, and nothing is computed twice or shared."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from parallel.errors import RequestError, RunError
from parallel.requests.types import Request, Sampling
from parallel.scheduling.blocks import BlockManager
from parallel.scheduling.scheduler import Limits, Scheduler
from tests.specs import small_spec  # noqa: F401  (its hypothesis settings)

EOS = 7


def request(number: int, prompt: int, new: int = 4, **sampling: Any) -> Request:
    tokens = tuple(100 + i for i in range(prompt))
    return Request(number, tokens, Sampling(max_tokens=new, **sampling))


def make(
    blocks: int = 40,
    step_tokens: int = 16,
    requests: int = 4,
    context: int = 64,
    batches: int = 1,
    block_tokens: int = 4,
) -> Scheduler:
    limits = Limits(step_tokens, requests, context, batches)
    return Scheduler(BlockManager(blocks, block_tokens), limits, (EOS,))


def finish(scheduler: Scheduler, tokens: dict[int, list[int]] | None = None) -> dict[int, str]:
    """Runs until idle, one batch at a time; `tokens` in order by request, 0 after them."""
    reasons: dict[int, str] = {}
    queues = {i: deque(t) for i, t in (tokens or {}).items()}
    while not scheduler.idle:
        batch = scheduler.schedule()
        assert batch is not None
        sampled = {}
        for w in batch.work:
            if w.samples:
                queue = queues.get(w.sequence.id)
                sampled[w.sequence.id] = queue.popleft() if queue else 0
        for number, reason in scheduler.complete(batch, sampled).items():
            if reason is not None:
                reasons[number] = reason
    return reasons


# ---------------------------------------------------------------------------- blocks


def test_blocks_are_lent_and_given_back() -> None:
    blocks = BlockManager(5, 16)
    assert [blocks.needed(n) for n in (0, 1, 16, 17, 80)] == [0, 1, 1, 2, 5]
    first, second = blocks.allocate(2), blocks.allocate(3)
    assert sorted(first + second) == [0, 1, 2, 3, 4]
    assert blocks.free == 0
    with pytest.raises(RunError, match="1 cache blocks were asked for, 0 are free"):
        blocks.allocate(1)
    blocks.release(first)
    assert blocks.allocate(2) == first


# ---------------------------------------------------------------------------- requests


def test_requests_that_can_never_be_served() -> None:
    scheduler = make(blocks=8, context=64)
    cases = [
        (request(0, 0), "prompt", None, "the prompt is empty"),
        (request(0, 64), "prompt", "context_length_exceeded", "64 tokens; the context holds 64"),
        (
            request(0, 30, 20),
            "max_tokens",
            "context_length_exceeded",
            "30 prompt and 20 new tokens don't fit the KV cache of 32 tokens",
        ),
    ]
    for refused, param, code, words in cases:
        with pytest.raises(RequestError) as caught:
            scheduler.add(refused)
        assert (caught.value.param, caught.value.code) == (param, code)
        assert words in str(caught.value)
    assert scheduler.idle
    scheduler.add(request(1, 30, 2))
    assert finish(scheduler) == {1: "length"}


@pytest.mark.parametrize(
    ("sampling", "tokens", "reason", "length"),
    [
        ({}, [1, 2, 3], "length", 4),
        ({}, [1, EOS], "stop", 2),
        ({"ignore_eos": True}, [1, EOS], "length", 4),
        ({"stop_token_ids": (9,)}, [9], "stop", 1),
        ({"stop_token_ids": (9,), "ignore_eos": True}, [1, 1, 9], "stop", 3),
    ],
)
def test_why_requests_end(
    sampling: dict[str, Any], tokens: list[int], reason: str, length: int
) -> None:
    scheduler = make()
    scheduler.add(request(3, 5, **sampling))
    sequence = scheduler.waiting[0]
    assert finish(scheduler, {3: tokens}) == {3: reason}
    assert len(sequence.tokens) == 5 + length


def test_the_context_cuts_generation_short() -> None:
    scheduler = make(context=10)
    scheduler.add(request(0, 7, 100))
    sequence = scheduler.waiting[0]
    assert finish(scheduler) == {0: "length"}
    assert len(sequence.tokens) == 10


# ---------------------------------------------------------------------------- batches


def test_a_prompt_is_computed_in_chunks_beside_decodes() -> None:
    scheduler = make(step_tokens=8)
    scheduler.add(request(0, 3, 10))
    batch = scheduler.schedule()
    assert batch is not None and batch.phase == "prefill"
    assert [s.id for s in batch.joined] == [0]
    scheduler.complete(batch, {0: 1})
    scheduler.add(request(1, 17, 2))
    seen = []
    for _ in range(4):
        batch = scheduler.schedule()
        assert batch is not None
        seen.append([(w.sequence.id, w.start, w.count, w.samples) for w in batch.work])
        scheduler.complete(batch, {w.sequence.id: 1 for w in batch.work if w.samples})
    assert seen == [
        [(0, 3, 1, True), (1, 0, 7, False)],
        [(0, 4, 1, True), (1, 7, 7, False)],
        [(0, 5, 1, True), (1, 14, 3, True)],
        [(0, 6, 1, True), (1, 17, 1, True)],
    ]
    assert batch.phase == "decode" and batch.tokens == 2 and batch.joined == ()


def test_first_come_first_served() -> None:
    """A request that waits for room isn't overtaken by a small one."""
    scheduler = make(blocks=10, requests=3)
    scheduler.add(request(0, 20, 4))
    scheduler.add(request(1, 20, 4))
    scheduler.add(request(2, 1, 1))
    batch = scheduler.schedule()
    assert batch is not None
    assert list(scheduler.running) == [0]
    assert [s.id for s in scheduler.waiting] == [1, 2]
    assert scheduler.used_tokens == 16, "what the first chunk needs"
    following = scheduler.schedule()
    assert following is not None and following.tokens == 4, "the rest of the prompt"
    assert scheduler.schedule() is None
    scheduler.complete(batch, {})
    scheduler.complete(following, {0: 1})
    assert set(finish(scheduler)) == {0, 1, 2}


def test_sequences_are_shared_out_to_the_batches_in_flight() -> None:
    scheduler = make(batches=2, requests=4)
    for number in range(4):
        scheduler.add(request(number, 1, 8))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert first is not None and second is not None
    assert [len(b.work) for b in (first, second)] == [2, 2]
    assert scheduler.schedule() is None


# ---------------------------------------------------------------------------- cancelling


def test_cancelling() -> None:
    scheduler = make(requests=2)
    for number in range(3):
        scheduler.add(request(number, 4, 8))
    batch = scheduler.schedule()
    assert batch is not None and len(batch.work) == 2
    waiting = scheduler.cancel(2)
    assert waiting is not None and waiting.finish_reason == "cancelled"
    flying = scheduler.cancel(0)
    assert flying is not None and (flying.request_id, flying.token) == (0, -1)
    assert scheduler.cancel(0) is None, "gone"
    assert scheduler.cancel(99) is None, "unknown"
    assert scheduler.complete(batch, {0: 1, 1: 1}) == {1: None}, "what flew for it is dropped"
    running = scheduler.cancel(1)
    assert running is not None and running.finish_reason == "cancelled"
    assert scheduler.idle and scheduler.blocks.whole
