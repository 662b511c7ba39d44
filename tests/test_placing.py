"""Which replica gets a prompt: prefixes, estimated work, places."""

from __future__ import annotations

import random
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.errors import RequestError
from parallel.requests.placing import Lengths, QueueFull, check_room, choose
from parallel.requests.prefixes import PrefixMemory, block_digests
from parallel.requests.replica import Pending, Replica
from parallel.requests.types import TokenEvent
from parallel.requests.wire import Channel

BLOCK = 4
TOKENS = st.lists(st.integers(0, 2), max_size=40)


def replica(number: int, most: int = 1000, blocks: int = 1000) -> Replica:
    facts = {"most_sequences": most, "prefix_blocks": blocks}
    return Replica.of(number, cast(Channel, None), facts)


def pending(prompt: int, generated: int) -> Pending:
    return Pending(lambda _: None, prompt, generated)


@given(TOKENS, TOKENS)
def test_digests_are_equal_as_far_as_whole_blocks_are(first: list[int], second: list[int]) -> None:
    same = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
    one, two = block_digests(first, BLOCK), block_digests(second, BLOCK)
    assert [len(one), len(two)] == [len(first) // BLOCK, len(second) // BLOCK]
    assert [a == b for a, b in zip(one, two, strict=False)] == [
        i < same // BLOCK for i in range(min(len(one), len(two)))
    ]


@given(st.lists(TOKENS, max_size=12), TOKENS, st.integers(0, 12))
def test_a_memory_is_bounded_and_knows_prefixes_whole(
    prompts: list[list[int]], asked: list[int], most: int
) -> None:
    memory = PrefixMemory(most)
    for prompt in prompts:
        memory.note(block_digests(prompt, BLOCK))
        assert len(memory) <= most
    for prompt in (*prompts, asked):
        digests = block_digests(prompt, BLOCK)
        known = [memory.matched([d]) for d in digests]
        assert known == sorted(known, reverse=True)
        assert memory.matched(digests) == sum(known)
    if prompts:
        newest = block_digests(prompts[-1], BLOCK)
        assert memory.matched(newest) == min(len(newest), most)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=5),
    st.integers(1, 40),
)
def test_the_least_estimated_work_wins_and_ties_go_to_the_lowest(
    states: list[tuple[int, bool]], tokens: int
) -> None:
    prompt = list(range(tokens))
    digests = block_digests(prompt, BLOCK)
    replicas = []
    for number, (work, knows) in enumerate(states):
        made = replica(number)
        made.add(number, pending(work, 1))
        if knows:
            made.prefixes.note(digests)
        replicas.append(made)
    left = [
        min(tokens, max(1, tokens - len(digests) * BLOCK)) if knows else tokens
        for _, knows in states
    ]
    totals = [work + more for (work, _), more in zip(states, left, strict=True)]
    chosen, to_compute = choose(replicas, tokens, digests, BLOCK, 1)
    assert chosen.number == totals.index(min(totals))
    assert to_compute == left[chosen.number]


@settings(max_examples=50)
@given(st.integers(2, 5), st.integers(1, 60), st.integers(1, 20), st.integers(1, 40))
def test_a_hot_prefix_does_not_pile_up(
    count: int, prompt: int, generated: int, requests: int
) -> None:
    """Whatever is cached where, no replica has more left than another and one whole request."""
    replicas = [replica(n) for n in range(count)]
    draw = random.Random(prompt)
    for number in range(requests):
        tokens = [7] * prompt + [draw.randrange(100) for _ in range(3)]
        digests = block_digests(tokens, BLOCK)
        chosen, to_compute = choose(replicas, len(tokens), digests, BLOCK, 1)
        chosen.prefixes.note(digests)
        chosen.add(number, pending(to_compute, generated))
        work = [r.work_tokens for r in replicas]
        assert max(work) - min(work) <= len(tokens) + generated


def test_work_left_follows_the_events() -> None:
    made = replica(0)
    made.add(1, pending(10, 2))
    made.add(2, pending(5, 8))
    assert made.work_tokens == 25
    made.account(TokenEvent(1, 9), 0.0)
    assert made.work_tokens == 1 + 13
    for _ in range(3):  # it goes on longer than was thought
        made.account(TokenEvent(1, 9), 0.0)
    assert made.work_tokens == 1 + 13
    made.account(TokenEvent(2, -1, finish_reason="cancelled"), 0.0)
    made.account(TokenEvent(1, 9, finish_reason="stop"), 0.0)
    assert (made.work_tokens, made.requests) == (0, {})
    assert made.account(TokenEvent(1, 9), 0.0) is None


def test_expected_lengths_are_learned_and_never_above_what_was_asked_for() -> None:
    lengths = Lengths()
    assert lengths.expected(5000) == 5000
    lengths.saw(100)
    assert (lengths.expected(5000), lengths.expected(30)) == (100, 30)
    for _ in range(300):
        lengths.saw(20)
    assert lengths.expected(5000) == 20


def test_places_and_when_to_try_again() -> None:
    first, second = replica(0, most=3), replica(1, most=2)
    both = [first, second]
    for number in range(3):
        first.add(number, pending(1, 1))
    second.add(9, pending(1, 1))
    check_room(both, 1, 1, 0.0)
    with pytest.raises(QueueFull) as full:
        check_room(both, 2, 1, 0.0)
    assert full.value.retry_seconds == 1  # nothing has ended yet that would tell
    # Three ends in 12 seconds: 4 seconds each.
    for number, seconds in enumerate((0.0, 5.0, 12.0)):
        first.account(TokenEvent(number, 1, finish_reason="stop"), seconds)
    for number in range(3):
        first.add(10 + number, pending(1, 1))
    assert first.retry_seconds(1, 12.0) == 4
    assert first.retry_seconds(3, 12.0) == 12
    assert first.retry_seconds(3, 1e6) == 60
    with pytest.raises(RequestError, match="2 such prompts") as never:
        check_room(both, 3, 2, 0.0)
    assert never.value.param == "n" and not isinstance(never.value, QueueFull)


def test_only_replicas_with_a_place_are_chosen() -> None:
    busy, full = replica(0), replica(1, most=1)
    busy.add(1, pending(500, 500))
    full.add(2, pending(1, 1))
    chosen, to_compute = choose([busy, full], 5, [], 0, 1)
    assert (chosen, to_compute) == (busy, 5)
