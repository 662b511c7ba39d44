"""Blocks of the cache copied, swapped out and back: every layer, every byte."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.devices.cpu import CpuDevice
from parallel.kernels import block_moves
from parallel.kernels.block_moves import BlockMover, BlockMoves
from parallel.kernels.cache import KVCache, LayerCache
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.formats import choose_formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.plan import Plan, make_plan
from parallel.units import GIB
from tests.specs import small_spec, toy_cluster, toy_device

BLOCKS, HOST = 6, 5


def make_cache(dtype: torch.dtype) -> KVCache:
    """Two layers of different widths, all elements different."""
    layers = {}
    for number, heads in ((3, 2), (4, 1)):
        key = torch.arange(BLOCKS * 4 * heads * 8).view(BLOCKS, 4, heads, 8) % 251
        layers[number] = LayerCache(key.to(dtype), (key + 100 * number).to(dtype))
    return KVCache(layers, BLOCKS, 4)


def contents(cache: KVCache) -> list[list[torch.Tensor]]:
    """By block."""
    tensors = [t for layer in cache.layers.values() for t in layer.tensors]
    return [[t[b].clone() for t in tensors] for b in range(BLOCKS)]


def pairs(ours: int, theirs: int) -> st.SearchStrategy[list[tuple[int, int]]]:
    pair = st.tuples(st.integers(0, ours - 1), st.integers(0, theirs - 1))
    return st.lists(pair, max_size=4)


@given(
    st.lists(
        st.builds(BlockMoves, pairs(BLOCKS, HOST), pairs(BLOCKS, BLOCKS), pairs(BLOCKS, HOST)),
        max_size=4,
    ),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=40, deadline=None)
def test_moves_are_those_of_a_list_of_blocks(moves: list[BlockMoves], dtype: torch.dtype) -> None:
    cache = make_cache(dtype)
    mover = BlockMover(cache, HOST, CpuDevice())
    expected = contents(cache)
    host = [[torch.zeros_like(t) for t in expected[0]] for _ in range(HOST)]
    for step in moves:
        mover.run(step)
        for block, place in step.out:
            host[place] = expected[block]
        for source, target in step.copies:
            expected[target] = expected[source]
        for block, place in step.back:
            expected[block] = host[place]
    for found, wanted in zip(contents(cache), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_pool_is_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(torch.bfloat16)
    size = BlockMover(cache, 0, CpuDevice()).block_bytes
    assert size == sum(t[0].nbytes for layer in cache.layers.values() for t in layer.tensors)
    monkeypatch.setattr(block_moves, "_PIECE_BYTES", 2 * size + 1)
    mover = BlockMover(cache, HOST, CpuDevice())
    assert mover.device_bytes == mover.pool_bytes == HOST * size
    before = contents(cache)
    mover.run(BlockMoves(out=[(b, b) for b in range(HOST)]))
    mover.run(BlockMoves(back=[(HOST - b, b) for b in range(HOST)]))
    for place in range(HOST):
        found = contents(cache)[HOST - place]
        assert all(torch.equal(a, b) for a, b in zip(found, before[place], strict=True))


def test_swapping_goes_through_a_buffer_where_the_host_is_elsewhere() -> None:
    cache = make_cache(torch.float32)
    mover = BlockMover(cache, HOST, CpuDevice())
    mover._staging = torch.empty(mover.block_bytes, dtype=torch.uint8)
    before = contents(cache)
    mover.run(BlockMoves(out=[(1, 3), (2, 0)], copies=[(5, 1), (5, 2)], back=[(4, 0), (0, 3)]))
    after = contents(cache)
    for block, was in ((4, 2), (0, 1), (1, 5), (2, 5), (3, 3), (5, 5)):
        assert all(torch.equal(a, b) for a, b in zip(after[block], before[was], strict=True))
    assert mover.device_bytes == mover.staging_bytes == mover.block_bytes


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_plan_knows_the_pool(kind: str) -> None:
    """As many blocks as fit where they take most; less cache for it only where the host's memory
    is the device's."""
    device = toy_device(4.0, kind=kind)
    limits = EngineLimits(step_tokens=128, requests=64)
    # Three query heads' worth of cache on two ranks: one holds more than the other.
    spec = small_spec(num_attention_heads=3, num_key_value_heads=3, hidden_size=96)
    layout, cluster = Layout.make(spec, Degrees(tp=2)), toy_cluster(device, device)

    def planned(swap_gib: float) -> Plan:
        swapping = replace(limits, swap_gib=swap_gib)
        formats = choose_formats(spec)
        return make_plan(layout, cluster, formats, swapping, Workload(16, 16, 1), Budget(0.6))

    without, plan = planned(0.0), planned(0.25)
    blocks = [m.kv_cache // (without.blocks + without.spare_blocks(0)) for m in without.memory]
    assert len(set(blocks)) == 2
    assert plan.swap_blocks == GIB // 4 // max(blocks)
    taken = [size * plan.swap_blocks if kind == "cpu" else size for size in blocks]
    assert [m.swap for m in plan.memory] == taken
    assert [m.swap for m in without.memory] == [0, 0] and without.swap_blocks == 0
    assert all(m.total <= m.budget for m in plan.memory)
    assert plan.to_json()["swap_tokens"] == plan.swap_blocks * limits.block_tokens
