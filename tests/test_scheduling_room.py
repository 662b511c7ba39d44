"""When the cache is short or shared: who starts, who gives way, who copies. Every step is executed
by a replica that knows what each slot must hold (tests/scheduling_model.py)."""

from __future__ import annotations

import pytest

from parallel.errors import RequestError
from parallel.requests.types import Request, Sampling
from parallel.scheduling.blocks import BlockManager
from parallel.scheduling.scheduler import Limits, Scheduler
from tests.scheduling_model import Replica

SIZE = 4


def replica(
    blocks: int = 40,
    host: int = 0,
    prefix_cache: bool = True,
    step_tokens: int = 32,
    requests: int = 8,
    batches: int = 1,
    queue: int | None = None,
) -> Replica:
    manager = BlockManager(blocks, SIZE, host, prefix_cache)
    return Replica(Scheduler(manager, Limits(step_tokens, requests, 200, batches, queue)))


def ask(
    number: int,
    prompt: int,
    new: int = 4,
    priority: int = 0,
    group: int | None = None,
    first: int | None = None,
) -> Request:
    """Prompts have nothing in common unless `first` says so."""
    start = 1000 * (number if first is None else first)
    tokens = tuple(range(start, start + prompt))
    sampling = Sampling(max_tokens=new, ignore_eos=True)
    return Request(number, tokens, sampling, priority, group)


def running(r: Replica) -> list[int]:
    return list(r.scheduler.running)


# ---------------------------------------------------------------------------- starting


def test_room_for_the_prompt_and_a_block_for_each_that_runs() -> None:
    r = replica(blocks=10)
    r.add(ask(0, 16))
    r.add(ask(1, 16))
    r.step()
    assert running(r) == [0, 1], "4 + 4 blocks and one more for each"
    tight = replica(blocks=9)
    tight.add(ask(0, 16))
    tight.add(ask(1, 16))
    tight.add(ask(2, 1))
    tight.step()
    assert running(tight) == [0], "nobody overtakes"
    tight.drain()
    assert tight.scheduler.counts.recomputed == 0


def test_nobody_is_preempted_within_a_block_of_a_start() -> None:
    r = replica(blocks=10, prefix_cache=False)
    r.add(ask(0, 16, 24))
    r.add(ask(1, 16, 20))
    for _ in range(1 + SIZE):
        r.step()
        assert r.scheduler.counts.recomputed == 0
    r.step()
    assert r.scheduler.counts.recomputed == 1
    r.drain()


def test_a_bounded_queue() -> None:
    r = replica(requests=2, queue=1)
    for number in range(3):
        r.add(ask(number, 4))
    with pytest.raises(RequestError) as caught:
        r.scheduler.add(ask(3, 4))
    assert caught.value.code == "queue_full" and r.scheduler.counts.refused == 1
    r.cancel(1)
    r.add(ask(4, 4))
    r.drain()


def test_an_urgent_request_starts_before_those_that_wait() -> None:
    r = replica(requests=1)
    r.add(ask(0, 4))
    r.step()
    r.add(ask(1, 4))
    r.add(ask(2, 4, priority=-1))
    assert [s.id for s in r.scheduler.waiting] == [2, 1]
    r.drain()
    assert list(r.ended) == [0, 2, 1]


# ---------------------------------------------------------------------------- giving way


@pytest.mark.parametrize(("host", "swapped"), [(0, 0), (20, 1)])
def test_the_last_come_of_the_lowest_priority_gives_way(host: int, swapped: int) -> None:
    r = replica(blocks=12, host=host, prefix_cache=False)
    r.add(ask(0, 12, 20, priority=1))
    r.add(ask(1, 12, 20))
    r.step()
    assert running(r) == [1, 0], "most senior first"
    while len(r.scheduler.running) == 2:
        r.step()
    assert running(r) == [1] and [s.id for s in r.scheduler.waiting] == [0]
    counts = r.scheduler.counts
    assert (counts.recomputed, counts.swapped) == (1 - swapped, swapped)
    before = r.computed_tokens
    r.drain()
    tokens = sum(len(r.known[n]) - 1 for n in (0, 1))
    again = 0 if swapped else counts.recomputed_tokens
    assert r.computed_tokens == tokens + again and before < tokens
    assert list(r.ended) == [1, 0]


def test_the_most_senior_never_gives_way() -> None:
    r = replica(blocks=16, prefix_cache=False)
    for number in range(5):
        r.add(ask(number, 8, 50))
    steps = 0
    while 0 not in r.ended:
        r.step()
        steps += 1
    assert steps == 50, "a prompt's step, then a token in each"
    r.drain()
    assert list(r.ended) == [0, 1, 2, 3, 4]
    assert r.scheduler.counts.recomputed > 0


def test_what_is_still_cached_is_not_computed_again() -> None:
    r = replica(blocks=12)
    r.add(ask(0, 12, 20))
    r.add(ask(1, 12, 20))
    r.drain()
    tokens = sum(len(r.known[n]) - 1 for n in (0, 1))
    lost = r.scheduler.counts.recomputed_tokens
    assert lost > 0 and tokens <= r.computed_tokens < tokens + lost


def test_a_preempted_sequence_gets_the_token_that_was_in_flight() -> None:
    r = replica(blocks=8, batches=2, prefix_cache=False)
    r.add(ask(0, 8, 24))
    r.add(ask(1, 8, 24))
    seen = False
    while not seen:
        r.step()
        while len(r.flight) < 2 and r.schedule():
            pass
        seen = any(s.awaited for s in r.scheduler.waiting)
    r.drain()


@pytest.mark.parametrize("host", [0, 20])
def test_cancelled_while_preempted(host: int) -> None:
    r = replica(blocks=12, host=host)
    r.add(ask(0, 12, 20))
    r.add(ask(1, 12, 20))
    while not r.scheduler.waiting or len(r.scheduler.running) != 1:
        r.step()
    r.cancel(1)
    r.drain()
    assert r.ended == {1: "cancelled", 0: "length"}


# ---------------------------------------------------------------------------- sharing


def test_a_prompt_that_is_cached_computes_its_last_token_alone() -> None:
    r = replica()
    r.add(ask(0, 16))
    r.drain()
    r.add(ask(1, 16, first=0))
    batch = r.schedule()
    assert batch is not None
    assert [(w.start, w.count, w.samples) for w in batch.work] == [(15, 1, True)]
    assert batch.joined[0].cached_tokens == 15 and batch.copies == (), "nobody else reads it"
    r.complete()
    r.add(ask(2, 16, first=0))
    batch = r.schedule()
    assert batch is not None and len(batch.copies) == 1, "the last block has another reader"
    r.drain()
    counts = r.scheduler.counts
    assert (counts.cached_tokens, counts.prompt_tokens) == (30, 48)


def test_blocks_are_shared_while_the_batch_that_computes_them_is_in_flight() -> None:
    r = replica(batches=2)
    r.add(ask(0, 17))
    first = r.schedule()
    r.add(ask(1, 18, first=0))
    second = r.schedule()
    assert first is not None and second is not None and len(r.flight) == 2
    assert [(w.start, w.count) for w in second.work] == [(16, 2)]
    r.drain()


@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("prompt", [1, 7, 8, 9])
def test_several_answers_share_their_prompt(prompt: int, prefix_cache: bool) -> None:
    r = replica(prefix_cache=prefix_cache, step_tokens=6)
    for number in range(3):
        r.add(ask(number, prompt, 6, group=5, first=0))
    r.step()
    assert running(r) == [0], "the others wait for it"
    r.drain()
    partial = (prompt - 1) % SIZE > 0
    assert r.scheduler.counts.copies == (2 if partial else 0)
    assert r.computed_tokens == sum(len(r.known[n]) - 1 for n in range(3)) - 2 * (prompt - 1)


def test_another_answer_computes_the_prompt_when_the_first_is_cancelled() -> None:
    r = replica(step_tokens=4, prefix_cache=False)
    for number in range(3):
        r.add(ask(number, 10, 3, group=5, first=0))
    r.step()
    r.cancel(0)
    r.step()
    assert running(r) == [1]
    r.drain()
    assert r.ended == {0: "cancelled", 1: "length", 2: "length"}
    assert r.computed_tokens == 4 + (10 + 2) + (1 + 2)


def test_a_shared_block_that_was_full_is_not_found_by_its_old_tokens() -> None:
    """The first answer fills the block that the second one shares, and leaves before the second
    one gets its turn: that one writes its own tokens there."""
    r = replica(requests=4, step_tokens=4)
    r.add(ask(0, 6, 4, group=1, first=0))
    for _ in range(4):
        r.step()
    r.add(ask(1, 30))
    r.add(ask(2, 1))
    r.add(ask(3, 6, 8, group=1, first=0))
    r.step()
    assert r.ended == {0: "length"} and r.scheduler.running[3].computed == 5
    r.step()
    assert r.scheduler.running[3].computed == 6 and r.scheduler.counts.copies == 0
    r.add(Request(4, (*r.known[0][:8], 5), Sampling(max_tokens=2, ignore_eos=True)))
    r.drain()


# ---------------------------------------------------------------------------- pipelines


def test_a_long_prompt_is_in_every_batch_in_flight() -> None:
    r = replica(batches=3, step_tokens=8)
    r.add(ask(0, 20))
    starts = []
    for _ in range(3):
        batch = r.schedule()
        assert batch is not None
        starts += [(w.start, w.count, w.samples) for w in batch.work]
    assert starts == [(0, 8, False), (8, 8, False), (16, 4, True)]
    assert r.schedule() is None, "its token is awaited"
    r.drain()


def test_decodes_are_spread_evenly() -> None:
    r = replica(batches=2, requests=5)
    for number in range(5):
        r.add(ask(number, 3, 30))
    for _ in range(6):
        r.step()
    assert sorted(len(b.work) for b in (*r.flight, r.schedule()) if b) == [2, 3]
    r.drain()
