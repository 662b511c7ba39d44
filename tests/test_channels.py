"""Sends through shared memory: ranks as threads, rings small enough to be full."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.devices.native.library import load

_LINE_BYTES, _SLOTS = 128, 32
native = torch.ops.tessera_native


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    load()


def segment_of(ranks: int, slot_bytes: int = _LINE_BYTES, counts: int = 0) -> torch.Tensor:
    """Rings that have been filled and emptied `counts` times."""
    ring = torch.zeros(3 * _LINE_BYTES + _SLOTS * slot_bytes, dtype=torch.uint8)
    lines = ring[: 3 * _LINE_BYTES].view(3, _LINE_BYTES)[:2, :4]
    lines.copy_(torch.tensor(list(counts.to_bytes(4, "little")), dtype=torch.uint8))
    return ring.repeat(ranks)


@settings(max_examples=40)
@given(
    ranks=st.integers(2, 5),
    slot=st.sampled_from([_LINE_BYTES, 1024]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.int64]),
    sizes=st.lists(st.integers(0, 9000), min_size=1, max_size=6),
    counts=st.sampled_from([0, 31, 2**31 - 2, 2**32 - 1]),
)
def test_arrays_pass_all_ranks_in_order(
    ranks: int, slot: int, dtype: torch.dtype, sizes: list[int], counts: int
) -> None:
    """Most are larger than a whole ring; the rings' counts run over."""
    segment = segment_of(ranks, slot, counts)
    sent = [(torch.arange(n) % 251 + i).to(dtype) for i, n in enumerate(sizes)]

    def run(rank: int) -> list[torch.Tensor]:
        found = []
        for x in sent:
            got = x if rank == 0 else torch.empty_like(x)
            if rank:
                native.receive_(got, segment, rank, ranks)
            if rank < ranks - 1:
                native.send(got, segment, rank, rank + 1, ranks)
            found.append(got)
        return found

    with ThreadPoolExecutor(ranks) as pool:
        for found in pool.map(run, range(ranks)):
            assert all(torch.equal(a, b) for a, b in zip(found, sent, strict=True))


def test_one_rank_feeds_several() -> None:
    segment = segment_of(4)
    for to in (1, 2, 3):
        native.send(torch.tensor([to]), segment, 0, to, 4)
    got = [torch.zeros(1, dtype=torch.int64) for _ in range(3)]
    for rank, x in enumerate(got, 1):
        native.receive_(x, segment, rank, 4)
    assert [int(x) for x in got] == [1, 2, 3]


def test_a_sender_goes_on_until_the_ring_is_full() -> None:
    """And then sleeps until there is room: next to no processor time."""
    segment = segment_of(2)
    for number in range(_SLOTS):
        native.send(torch.tensor([number]), segment, 0, 1, 2)

    def send_one_more() -> float:
        begin = time.thread_time()
        native.send(torch.tensor([_SLOTS]), segment, 0, 1, 2)
        return time.thread_time() - begin

    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(send_one_more)
        time.sleep(0.3)
        assert not late.done()
        got, found = torch.zeros(1, dtype=torch.int64), []
        for _ in range(_SLOTS + 1):
            native.receive_(got, segment, 1, 2)
            found.append(int(got))
        assert late.result() < 0.15
    assert found == list(range(_SLOTS + 1))


@pytest.mark.parametrize(
    ("x", "segment", "to", "words"),
    [
        (torch.ones(4, 4).t()[:2], segment_of(3), 2, "is contiguous"),
        (torch.ones(3), segment_of(3), 1, "goes elsewhere"),
        (torch.ones(3), torch.zeros(3 * 512, dtype=torch.uint8), 2, "1536 bytes is too small"),
        (torch.ones(3), torch.zeros(1 << 20), 2, "a segment is bytes"),
        (torch.ones(3), segment_of(3), 3, "the rank one of several"),
    ],
)
def test_what_cannot_be_sent(x: torch.Tensor, segment: torch.Tensor, to: int, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        native.send(x, segment, 1, to, 3)


def test_a_rank_is_fed_by_one_other() -> None:
    segment = segment_of(3)
    native.send(torch.ones(3), segment, 0, 2, 3)
    with pytest.raises(RuntimeError, match="fed by one other: by place 0, not 1"):
        native.send(torch.ones(3), segment, 1, 2, 3)
