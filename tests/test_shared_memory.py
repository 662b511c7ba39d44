"""The native collectives through shared memory: ranks as threads, results in closed form.

A segment is as large as its slots: small ones make every array go in pieces.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.devices.native.library import load

_LINE_BYTES = 128
RANKS = st.integers(2, 5)
SLOT_BYTES = st.sampled_from([_LINE_BYTES, 1024, 1 << 20])
SUMMED = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    load()


def segment_of(ranks: int, slot_bytes: int) -> torch.Tensor:
    return torch.zeros(ranks * (_LINE_BYTES + 2 * slot_bytes), dtype=torch.uint8)


def together(ranks: int, run: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(run, range(ranks)))


def random_of(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def total(parts: list[torch.Tensor]) -> torch.Tensor:
    """In float, in the order of ranks, rounded once."""
    whole = parts[0].float()
    for part in parts[1:]:
        whole = whole + part.float()
    return whole.to(parts[0].dtype)


@settings(max_examples=40)
@given(ranks=RANKS, slot=SLOT_BYTES, dtype=SUMMED, count=st.integers(0, 5000), seed=st.integers(0))
def test_sums(ranks: int, slot: int, dtype: torch.dtype, count: int, seed: int) -> None:
    """Several in a row, so that slots are used again."""
    segment = segment_of(ranks, slot)
    parts = [
        [random_of((count,), dtype, seed % 1000 + 7 * r + i) for i in range(4)]
        for r in range(ranks)
    ]

    def run(rank: int) -> torch.Tensor:
        mine = [part.clone() for part in parts[rank]]
        for x in mine:
            torch.ops.tessera_native.all_reduce_(x, segment, rank, ranks)
        return torch.stack(mine)

    want = torch.stack([total([parts[r][i] for r in range(ranks)]) for i in range(4)])
    for got in together(ranks, run):
        assert torch.equal(got, want)


@settings(max_examples=25)
@given(
    ranks=RANKS, slot=SLOT_BYTES, dtype=SUMMED, rows=st.integers(1, 6), width=st.integers(1, 300)
)
def test_scattered_sums(ranks: int, slot: int, dtype: torch.dtype, rows: int, width: int) -> None:
    segment = segment_of(ranks, slot)
    parts = [random_of((rows * ranks, width), dtype, r) for r in range(ranks)]

    def run(rank: int) -> torch.Tensor:
        mine = parts[rank].clone()
        out: torch.Tensor = torch.ops.tessera_native.reduce_scatter(mine, segment, rank, ranks)
        return out

    assert torch.equal(torch.cat(together(ranks, run)), total(parts))


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(0, 700), min_size=2, max_size=5),
    slot=SLOT_BYTES,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
    rows=st.integers(0, 9),
)
def test_gathers(sizes: list[int], slot: int, dtype: torch.dtype, rows: int) -> None:
    segment = segment_of(len(sizes), slot)
    parts = [(random_of((rows, n), torch.float32, r) * 9).to(dtype) for r, n in enumerate(sizes)]

    def run(rank: int) -> torch.Tensor:
        out: torch.Tensor = torch.ops.tessera_native.all_gather(parts[rank], sizes, segment, rank)
        return out

    for got in together(len(sizes), run):
        assert torch.equal(got, torch.cat(parts, dim=1))


def test_who_waits_long_sleeps_and_is_woken() -> None:
    """The sleeper uses next to no processor time."""
    segment = segment_of(2, 1024)

    def run(rank: int) -> torch.Tensor:
        x = torch.full((5,), rank + 1.0)
        if rank == 1:
            time.sleep(0.5)
        begin = time.thread_time()
        torch.ops.tessera_native.all_reduce_(x, segment, rank, 2)
        assert time.thread_time() - begin < 0.25
        return x

    assert [x.tolist() for x in together(2, run)] == [[3.0] * 5] * 2


@pytest.mark.parametrize(
    ("x", "segment", "words"),
    [
        (torch.ones(3, dtype=torch.int32), torch.zeros(1024, dtype=torch.uint8), "bf16, fp16 or"),
        (torch.ones(4, 4).t()[:2], torch.zeros(1024, dtype=torch.uint8), "is contiguous"),
        (torch.ones(3), torch.zeros(256, dtype=torch.uint8), "of 256 bytes is too small"),
        (torch.ones(3), torch.zeros(1024), "a segment is bytes"),
    ],
)
def test_what_cannot_be_summed(x: torch.Tensor, segment: torch.Tensor, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        torch.ops.tessera_native.all_reduce_(x, segment, 0, 2)
