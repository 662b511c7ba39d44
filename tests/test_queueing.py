"""The simulation of load: the runtime's own batches, and what its means must obey."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.planner.front import FrontCosts
from parallel.planner.load import Load
from parallel.planner.queueing import Rules, Simulation
from parallel.planner.work import StepWork
from parallel.requests.types import Request, Sampling
from parallel.scheduling.blocks import BlockManager
from parallel.scheduling.scheduler import Batch, Limits, Scheduler


def seconds(work: StepWork) -> float:
    """A power of two for each token: exact sums, so that both clocks read the same."""
    return work.tokens / 1024 + work.cached / 1048576


def work_of(batch: Batch) -> StepWork:
    total = StepWork(0, 0, 0, 0, 0)
    for w in batch.work:
        chunk = StepWork.prompt(w.count, w.start)
        prompt = w.count > 1 or w.start < w.sequence.prompt or not w.samples
        total += StepWork(w.count, 1, int(w.samples), chunk.pairs, chunk.cached, int(prompt))
    return total


def driven(
    load: Load, limits: Limits, blocks: int, block_tokens: int, host_blocks: int
) -> tuple[list[StepWork], int]:
    """The batches that the runtime's scheduler makes for the same clients, and how many gave way to
    host memory."""
    manager = BlockManager(blocks, block_tokens, host_blocks, prefix_cache=False)
    scheduler = Scheduler(manager, limits)
    coming = deque(range(round(load.concurrency * load.rounds)))
    found: list[StepWork] = []

    def send() -> None:
        if coming:
            request = coming.popleft()
            inputs, outputs = load.lengths(request)
            scheduler.add(Request(request, (1,) * inputs, Sampling(max_tokens=outputs)))

    for _ in range(load.concurrency):
        send()
    while not scheduler.idle:
        batch = scheduler.schedule()
        assert batch is not None
        found.append(work_of(batch))
        sampled = {w.sequence.id: 0 for w in batch.work if w.samples}
        for reason in scheduler.complete(batch, sampled).values():
            if reason is not None:
                send()
    return found, scheduler.counts.swapped


@given(
    clients=st.integers(1, 8),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 60),
    step_tokens=st.integers(1, 64),
    requests=st.integers(1, 8),
    room=st.sampled_from((0, 0, 1, 2, 4, 8, 20, 40)),
    block_tokens=st.sampled_from((1, 4, 16)),
    spread=st.sampled_from((0.0, 0.2, 1.0)),
    host_blocks=st.sampled_from((0, 0, 3, 10, 1000)),
)
def test_the_same_batches_as_the_scheduler(
    clients: int,
    inputs: int,
    outputs: int,
    step_tokens: int,
    requests: int,
    room: int,
    block_tokens: int,
    spread: float,
    host_blocks: int,
) -> None:
    load = Load(clients, inputs, outputs, spread, rounds=2)
    longest = max(sum(load.lengths(i)) for i in range(2 * clients))
    blocks = -(-longest // block_tokens) + room
    limits = Limits(step_tokens, requests, context_tokens=10**6)
    expected = driven(load, limits, blocks, block_tokens, host_blocks)
    found: list[StepWork] = []

    def watch(now: float, work: StepWork, count: int) -> None:
        for i in range(count):
            grown = work.cached + i * work.rows if work.chunks == 0 else work.cached
            pairs = grown if work.chunks == 0 else work.pairs
            found.append(replace(work, pairs=pairs, cached=grown))

    rules = Rules(
        step_tokens, limits.places, blocks * block_tokens, block_tokens, host_blocks=host_blocks
    )
    simulation = Simulation(load, rules, seconds, watch=watch)
    simulation.run()
    assert (found, simulation.host.swapped) == expected


@pytest.mark.parametrize(("host_blocks", "tpot"), [(6, 3.0), (5, 0.0)])
def test_what_gives_way_takes_its_time_out_and_back(host_blocks: int, tpot: float) -> None:
    """Two requests of 4 + 4 tokens in 12 blocks of one: the second leaves with 6 while the first
    takes its last block, and comes back then. Steps take nothing, blocks 1 s each way: 6 s for the
    first's 3 tokens, 12 s for the second's."""
    rules = Rules(64, 8, 12, host_blocks=host_blocks, move_seconds=1.0)
    times = Simulation(Load(2, 4, 4, 0.0, rounds=1), rules, lambda _: 0.0).run()
    assert times.tpot_seconds == pytest.approx(tpot)


def test_one_client_alone_waits_for_nobody() -> None:
    """Prompt of 10 in one step, then 4 more tokens, one step each."""
    times = Simulation(Load(1, 10, 5, 0.0), Rules(64, 8, 1000), lambda w: w.tokens / 10).run()
    assert times.ttft_seconds == pytest.approx(1.0)
    assert times.tpot_seconds == pytest.approx(0.1)
    assert times.tokens_per_second == pytest.approx(5 / 1.4)


def test_prompts_that_go_first_hold_up_the_tokens_of_others() -> None:
    """Two equal clients; a prompt takes 1 s, a step of decodes 0.1 s. Alone and first: both
    prompts before any decode. Beside decodes: the second prompt beside the first one's tokens."""

    def step(work: StepWork) -> float:
        return 1.0 if work.chunks else 0.1

    load = Load(2, 10, 11, 0.0, rounds=1)
    first = Simulation(load, Rules(10, 8, 1000, mixed=False), step).run()
    assert first.ttft_seconds == pytest.approx((1 + 2) / 2)
    assert first.tpot_seconds == pytest.approx((0.2 + 0.1) / 2)
    beside = Simulation(load, Rules(10, 8, 1000), step).run()
    assert beside.ttft_seconds == pytest.approx((1 + 3) / 2)


def test_clients_stand_in_line_at_a_front_that_is_slower_than_the_engine() -> None:
    """Four clients, 1 s of the front for each request, steps of no time: the first answer goes out
    once all that came before it are read."""
    load, front = Load(4, 10, 1, 0.0, rounds=1), FrontCosts(request_seconds=1.0)
    times = Simulation(load, Rules(64, 8, 1000), lambda _: 0.0, front).run()
    assert times.ttft_seconds == pytest.approx(4.0)


def test_no_more_tokens_come_out_than_the_front_sends() -> None:
    """A front that takes 0.3 s for a token, an engine that takes 0.1 s for a step."""
    front = FrontCosts(answer_token_seconds=0.3)
    times = Simulation(Load(1, 10, 5, 0.0), Rules(64, 8, 1000), lambda _: 0.1, front).run()
    assert times.tpot_seconds == pytest.approx(0.3)
    assert times.ttft_seconds == pytest.approx(0.1 + 0.3)


def test_what_only_passes_before_the_scheduler_sees_a_prompt_holds_up_nobody() -> None:
    """Latency of the way in, unlike the front's work, is the same for one client and for many."""
    front = FrontCosts(arrival_seconds=1.0, arrival_token_seconds=0.1)
    for clients in (1, 4):
        load = Load(clients, 10, 1, 0.0)
        times = Simulation(load, Rules(64, 8, 1000), lambda _: 0.0, front).run()
        assert times.ttft_seconds == pytest.approx(2.0)


@given(st.integers(0, 10_000))
def test_lengths_stay_within_the_spread(request: int) -> None:
    inputs, outputs = Load(4, 1000, 500, 0.2).lengths(request)
    assert 900 <= inputs <= 1100 and 450 <= outputs <= 550


@given(st.integers(1, 64), st.integers(1, 400))
def test_each_repeated_prompt_is_new_once_in_all_rounds(clients: int, prompts: int) -> None:
    load = Load(clients, 100, 10, rounds=40, prompts=prompts)
    burst = [load.asked_before(r) for r in range(clients)]
    later = [load.asked_before(r) for r in range(clients, 40 * clients)]
    assert burst.count(False) == min(clients, prompts)
    share = min(1.0, max(0.0, (prompts - clients) / (9 * clients)))
    assert later.count(False) / len(later) == pytest.approx(share, abs=4 / len(later) + 0.02)


@pytest.mark.parametrize(("cache_tokens", "kept"), [(1 << 16, 8), (4_000, 0)])
def test_a_prompt_asked_before_is_computed_but_for_its_end(cache_tokens: int, kept: int) -> None:
    """Where the cache holds all prompts that are repeated: 20 of 250 tokens don't fit in 4000."""
    load = Load(4, 200, 50, spread=0.0, rounds=6, prompts=20)
    rules = Rules(512, 4, cache_tokens, block_tokens=16)
    computed = []

    def watch(_: float, work: StepWork, count: int) -> None:
        computed.append(work.tokens * count)

    Simulation(load, rules, seconds, watch=watch).run()
    found = sum(load.asked_before(r) for r in range(24))
    assert found >= kept
    spared = found * 192 if kept else 0
    assert sum(computed) == 24 * (200 + 49) - spared
