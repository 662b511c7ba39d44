"""Blocks that are shared, kept for the next request with the same beginning, and evicted."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from parallel.errors import RunError
from parallel.scheduling.blocks import BlockManager
from parallel.scheduling.prefix import DIGEST_BYTES, extend_chain

TOKENS = st.lists(st.integers(0, 3), max_size=40)


def chain(tokens: list[int], size: int) -> list[bytes]:
    digests: list[bytes] = []
    extend_chain(digests, tokens, size, len(tokens) // size)
    return digests


@given(TOKENS, TOKENS, st.integers(1, 8))
def test_a_digest_stands_for_all_tokens_up_to_it(a: list[int], b: list[int], size: int) -> None:
    for index, (mine, other) in enumerate(zip(chain(a, size), chain(b, size), strict=False)):
        end = (index + 1) * size
        assert (mine == other) == (a[:end] == b[:end]) and len(mine) == DIGEST_BYTES


@given(TOKENS, st.integers(1, 8), st.integers(0, 40))
def test_a_chain_grows_as_if_made_at_once(tokens: list[int], size: int, cut: int) -> None:
    full = len(tokens) // size
    digests: list[bytes] = []
    extend_chain(digests, tokens, size, min(cut, full))
    extend_chain(digests, tokens, size, full)
    assert digests == chain(tokens, size)


def test_what_was_released_is_found_again_and_the_oldest_end_is_evicted_first() -> None:
    blocks = BlockManager(6, 2)
    first, second = chain([1, 2, 3, 4], 2), chain([5, 6], 2)
    a, b = blocks.allocate(2), blocks.allocate(1)
    for block, digest in zip(a + b, first + second, strict=True):
        blocks.enter(block, digest)
    blocks.release(a)
    blocks.release(b)
    assert (blocks.free, blocks.idle, blocks.whole) == (6, 3, True)
    assert blocks.match(first) == a and blocks.match(second) == b
    blocks.allocate(4)
    assert blocks.match(first) == a[:1], "a prefix loses its end first"
    assert blocks.match(second) == b and blocks.evictions == 1
    blocks.share(blocks.match(second))
    blocks.allocate(1)
    assert blocks.match(first) == [] and blocks.match(second) == b, "a held block stays"
    with pytest.raises(RunError):
        blocks.allocate(1)


def test_without_a_prefix_cache_nothing_is_kept() -> None:
    blocks = BlockManager(2, 2, prefix_cache=False)
    held = blocks.allocate(2)
    digests = chain([1, 2], 2)
    blocks.enter(held[0], digests[0])
    blocks.release(held)
    assert blocks.idle == 0 and blocks.match(digests) == []


class Pool(RuleBasedStateMachine):
    """A pool beside the simplest model of it: holders by block, idle blocks in order."""

    @initialize(total=st.integers(1, 8))
    def begin(self, total: int) -> None:
        self.blocks = BlockManager(total, 1)
        self.holders: dict[int, int] = {}
        self.names: dict[int, bytes] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()
        self.evicted = 0

    @rule(count=st.integers(1, 4))
    def allocate(self, count: int) -> None:
        free = self.blocks.total - len(self.holders)
        if count > free:
            with pytest.raises(RunError):
                self.blocks.allocate(count)
            return
        taken = self.blocks.allocate(count)
        unknown = free - len(self.idle)
        for place, block in enumerate(taken):
            assert block not in self.holders
            if place < unknown:
                assert block not in self.idle, "those that hold nothing come first"
            else:
                assert block == self.idle.popitem(last=False)[0], "then the longest idle"
                del self.names[block]
                self.evicted += 1
            self.holders[block] = 1

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.holders)))
        self.blocks.release([block])
        self.holders[block] -= 1
        if self.holders[block] == 0:
            del self.holders[block]
            if block in self.names:
                self.idle[block] = None

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), token=st.integers(0, 5))
    def enter(self, data: st.DataObject, token: int) -> None:
        block = data.draw(st.sampled_from(sorted(self.holders)))
        name = chain([token], 1)[0]
        self.blocks.enter(block, name)
        if block not in self.names and name not in self.names.values():
            self.names[block] = name

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.holders)))
        self.blocks.forget(block)
        self.names.pop(block, None)

    @rule(token=st.integers(0, 5))
    def share(self, token: int) -> None:
        name = chain([token], 1)[0]
        found = self.blocks.match([name])
        assert found == [b for b, n in self.names.items() if n == name]
        self.blocks.share(found)
        for block in found:
            self.idle.pop(block, None)
            self.holders[block] = self.holders.get(block, 0) + 1

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "blocks"):
            assert self.blocks.free == self.blocks.total - len(self.holders)
            assert self.blocks.idle == len(self.idle)
            assert self.blocks.whole == (not self.holders)
            assert self.blocks.evictions == self.evicted
            for block, count in self.holders.items():
                assert self.blocks.shared(block) == (count > 1)


class TestPool(Pool.TestCase):
    settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
