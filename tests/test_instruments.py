"""Ledger, clock and the tracker of live tensors: numbers in, numbers out."""

from __future__ import annotations

import json
from itertools import count as count_up
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed._tools.mem_tracker import MemTracker

from parallel.devices.cpu import CpuDevice
from parallel.devices.process import ResidentMemory
from parallel.instrument.clock import Contexts, Shape, StepClock
from parallel.instrument.common_clock import Answer, ClockMap, Offset, best_offset
from parallel.instrument.cost import InstrumentCost, RecordCosts, seconds_of
from parallel.instrument.ledger import Ledger
from parallel.instrument.memory import MemoryEntry, MemoryTimeline
from parallel.instrument.spans import Kind, Moment, Record, Samples, Spans
from parallel.instrument.stamps import from_wire, to_wire
from parallel.instrument.waits import RankStamps, split_waits
from parallel.layout.degrees import Degrees
from parallel.planner.limits import EngineLimits
from parallel.planner.search import Wanted
from parallel.runtime.activations import LiveTensors
from parallel.runtime.engine import _shape
from parallel.runtime.measuring import predicted_costs
from parallel.runtime.reporting import predicted_steps
from parallel.scheduling.batch import Batch
from tests.specs import toy_planner


def test_ledger_adds_up_by_phase() -> None:
    ledger = Ledger()
    for phase, calls in (("prefill", 1), ("decode", 3)):
        ledger.begin_step(phase)
        for _ in range(calls):
            key = ("tp", "all_reduce", "ffn", phase, "gloo")
            ledger.add(key, 100, 1_000_000_000, 1_500_000_000)
    rows = ledger.rows(2)
    assert [(r["phase"], r["calls"], r["bytes"], r["seconds"]) for r in rows] == [
        ("decode", 3, 300, 1.5),
        ("prefill", 1, 100, 0.5),
    ]
    assert [(r["exposed_seconds"], r["hidden_seconds"]) for r in rows] == [(1.5, 0.0), (0.5, 0.0)]
    assert {r["rank"] for r in rows} == {2} and rows[0]["wait_seconds"] is None
    ledger.reset()
    assert ledger.rows(2) == [] and ledger.spans.step == 0


def test_times_of_a_call_from_before_a_reset_are_dropped() -> None:
    ledger = Ledger("decode")
    key = ("tp", "all_reduce", "ffn", "decode", "nccl")
    ledger.count(key, 8)
    ledger.reset()
    ledger.settle(key, 8, 0, 5, -1, Moment(1, "decode", 1))
    assert ledger.rows(0) == [] and ledger.spans.sampled == []


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 20))
def test_samples_are_bounded_whole_steps_at_one_stride(calls: list[int], capacity: int) -> None:
    samples = Samples(capacity)
    for step, count in enumerate(calls, 1):
        for call in range(count):
            samples.add(step, (0, 9 + step, call, call + 1, 0, -1))
    kept = [(r.step - 9, r.begin_ns) for r in samples.records]
    assert len(kept) <= capacity and samples.stride & (samples.stride - 1) == 0
    assert kept == [
        (step, call)
        for step, count in enumerate(calls, 1)
        if step % samples.stride == 0
        for call in range(count)
    ]


@given(st.integers(1, 12), st.lists(st.integers(0, 4), max_size=30), st.integers(1, 10))
def test_the_ring_keeps_the_last(capacity: int, calls: list[int], steps: int) -> None:
    spans, whole = Spans(capacity), []
    for count in calls:
        spans.begin_step("decode")
        for _ in range(count):
            spans.add(0, spans.step, len(whole), len(whole) + 1)
            whole.append((spans.step, len(whole)))
    wanted = [(s, n) for s, n in whole[-capacity:] if s > len(calls) - steps]
    assert [(r.step, r.begin_ns) for r in spans.last(steps)] == wanted


def test_without_a_ring_nothing_but_samples_is_kept() -> None:
    spans = Spans()
    spans.begin_step("decode")
    spans.add(0, 1, 0, 1)
    spans.add_collective(0, spans.now, 0, 1, 8, -1)
    assert list(spans.last(9)) == [] and spans.sampled == [(0, 1, 0, 1, 8, -1)]


def test_a_rare_phase_keeps_its_samples() -> None:
    spans = Spans(samples=4)
    for step in range(1, 50):
        spans.begin_step("prefill" if step == 1 else "decode")
        if spans.wanted:
            spans.add_collective(0, spans.now, 0, 1, 8, -1)
    assert [r.step for r in spans.sampled] == [1, 17, 33, 49]


def stamps(
    op: str, axis: str, times: list[list[tuple[int, int]]], peers: list[int] | None = None
) -> list[RankStamps]:
    """Calls of step 1 on each rank, (begin, end) in ns."""
    out = []
    for rank, own in enumerate(times):
        kind = Kind("collective", op, "decode", "ffn", axis, "gloo")
        peer = -1 if peers is None else peers[rank]
        records = [Record(0, 1, begin, end, 8, peer) for begin, end in own]
        out.append((rank, [kind], records))
    return out


def rows(op: str, axis: str, times: list[list[tuple[int, int]]]) -> list[dict[str, Any]]:
    out = []
    for rank, own in enumerate(times):
        ledger = Ledger("decode")
        for begin, end in own:
            ledger.add((axis, op, "ffn", "decode", "gloo"), 8, begin, end)
        out += ledger.rows(rank)
    return out


def split(
    op: str, axis: str, times: list[list[tuple[int, int]]], degrees: Degrees
) -> list[tuple[float | None, float | None, int]]:
    found = split_waits(rows(op, axis, times), stamps(op, axis, times), degrees.group)
    return [(r["wait_seconds"], r["transfer_seconds"], r["sampled_calls"]) for r in found]


S = 10**9


def test_waiting_lasts_until_the_last_rank_enters() -> None:
    times = [[(0, 5 * S), (6 * S, 8 * S)], [(3 * S, 5 * S), (6 * S, 8 * S)]]
    both = [*times, [(0, S), (S, 2 * S)], [(0, S), (S, 2 * S)]]
    found = split("all_reduce", "tp", both, Degrees(tp=2, dp=2))
    assert found == [(3.0, 4.0, 2), (0.0, 4.0, 2), (0.0, 2.0, 2), (0.0, 2.0, 2)]


def test_waiting_is_unknown_where_a_rank_has_kept_no_such_step() -> None:
    times = [[(0, 5 * S)], []]
    assert split("all_reduce", "tp", times, Degrees(tp=2)) == [(None, None, 0)]


def test_a_receiver_waits_until_its_sender_begins() -> None:
    sent, received = [[(4 * S, 5 * S)], []], [[], [(S, 6 * S)]]
    kinds = stamps("send", "pp", sent, [1, 0])[0][1] + stamps("recv", "pp", received)[1][1]
    found = split_waits(
        rows("send", "pp", sent) + rows("recv", "pp", received),
        [
            (0, kinds, [Record(0, 1, 4 * S, 5 * S, 8, 1)]),
            (1, kinds, [Record(1, 1, S, 6 * S, 0, 0)]),
        ],
        Degrees(pp=2).group,
    )
    assert [(r["op"], r["wait_seconds"], r["transfer_seconds"]) for r in found] == [
        ("send", 0.0, 1.0),
        ("recv", 3.0, 2.0),
    ]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 100), min_size=3, max_size=3), st.integers(0, 50)),
        min_size=1,
        max_size=8,
    )
)
def test_waits_of_a_group(calls: list[tuple[list[int], int]]) -> None:
    """All leave a call together: whoever enters last waits not at all, the others for it."""
    times: list[list[tuple[int, int]]] = [[], [], []]
    waited, now = [0, 0, 0], 0
    for late, transfer in calls:
        end = now + max(late) + transfer
        for rank in range(3):
            times[rank].append((now + late[rank], end))
            waited[rank] += max(late) - late[rank]
        now = end
    found = split("all_reduce", "tp", times, Degrees(tp=3))
    transfer = sum(t for _, t in calls) / S
    for (wait, moved, count), expected in zip(found, waited, strict=True):
        assert wait == pytest.approx(expected / S) and moved == pytest.approx(transfer)
        assert count == len(calls)


def test_stamps_survive_the_way() -> None:
    kinds = [
        Kind("collective", "all_reduce", "decode", "ffn", "tp", "gloo"),
        Kind("step", "a", "b"),
    ]
    records = [Record(0, 1, 5, 9, 8, -1), Record(1, 2, -7, 2**60, 0, 3)]
    body = json.loads(json.dumps(to_wire(4, kinds, records, lambda ns: ns + 1)))
    moved = [r._replace(begin_ns=r.begin_ns + 1, end_ns=r.end_ns + 1) for r in records]
    assert from_wire(body) == (4, kinds, moved)


@given(
    st.integers(-(10**15), 10**15),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1),
)
def test_the_true_offset_is_within_the_error(offset: int, ways: list[tuple[int, int]]) -> None:
    now, answers = 0, []
    for out, back in ways:
        answers.append(Answer(now, now + out + offset, now + out + back))
        now += out + back + 1
    found = best_offset(answers)
    assert abs(found.offset_ns - offset) <= found.error_ns
    assert found.error_ns <= min(out + back for out, back in ways) / 2 + 1


@given(st.integers(-(10**12), 10**12), st.integers(-1000, 1000), st.integers(0, 10**6))
def test_an_even_drift_is_followed_between_measures(offset: int, ppm: int, at: int) -> None:
    far = 10**6
    known = ClockMap([Offset(0, offset, 0), Offset(far, offset + ppm, 0)])
    assert known.common_ns(at) == at + offset + ppm * at // far
    assert ClockMap().common_ns(at) == at
    assert known.common_ns(2 * far) == 2 * far + offset + ppm


def entry(stamp: int) -> MemoryEntry:
    return MemoryEntry(stamp, "step", 1, 2, 3, None, 5, 6, 7, None, None)


@given(st.integers(0, 400))
def test_the_memory_timeline_is_bounded_and_spread(steps: int) -> None:
    timeline = MemoryTimeline(most_steps=8, stride=2)
    timeline.event(entry(0))
    for step in range(1, steps + 1):
        if timeline.wants(step):
            timeline.step(step, entry(step))
    first, *kept = [e.stamp_ns for e in timeline.entries]
    assert first == 0 and len(kept) <= 8
    assert len({b - a for a, b in pairwise([0, *kept])}) <= 1
    assert not kept or steps - kept[-1] < kept[0]


def test_memory_in_use_is_that_of_the_process() -> None:
    held = torch.ones(32 * 2**20, dtype=torch.uint8)
    found = CpuDevice().memory_in_use()
    assert found.resident_bytes > held.nbytes and found.allocated_bytes is None
    assert ResidentMemory(Path("/nowhere")).bytes == 0


def test_costs_add_up() -> None:
    cost = InstrumentCost(10, 100, 20, 2, RecordCosts(1e-6, 1e-5, 1e-4))
    assert cost.to_json()["seconds"] == pytest.approx(120e-6 + 100e-6 + 200e-6)
    assert seconds_of(lambda: None, count_up(0, 50).__next__) == 1.0


def test_clock_keeps_shapes_and_overlapping_steps() -> None:
    times = iter([0.0, 1.0, 4.0, 6.0, 10.0, 11.0])
    clock = StepClock(lambda: next(times))
    decode, prefill = Shape("decode", 2, 2, 2), Shape("prefill", 30, 1, 1)
    clock.start(0, decode, Contexts(100, 100))
    clock.start(1, prefill, Contexts(465, 30))
    clock.stop(0)
    clock.stop(1)
    clock.start(2, decode, Contexts(102, 102))
    clock.stop(2)
    found = dict(clock.phases())
    ((shape, count),) = found["decode"]
    assert shape == decode
    assert (count.steps, count.pairs, count.cached, count.seconds) == (2, 202, 202, 5.0)
    assert found["prefill"][0][1].seconds == 5.0


@pytest.mark.parametrize("pp", [1, 2])
def test_swapped_blocks_are_part_of_what_is_predicted(pp: int) -> None:
    plan = toy_planner(limits=EngineLimits(swap_gib=0.01)).plan(Degrees(pp=pp), Wanted())
    batch = Batch((), (), swapped_out=((0, 0), (1, 1)), swapped_in=((2, 2),))
    assert _shape("decode", batch)[1] == Contexts(0, 0, 3)

    def clock(swapped: int) -> StepClock:
        made = StepClock(course=[])
        made.start(0, Shape("decode", 2, 2, 2), Contexts(100, 100, swapped))
        made.stop(0)
        return made

    kept, moved = (predicted_steps(plan, clock(n))["decode"] for n in (0, 3))
    swap_seconds = 3 * plan.move_seconds()
    assert (kept["predicted_swap_seconds"], kept["swapped_blocks"]) == (0.0, 0)
    assert moved["predicted_swap_seconds"] == swap_seconds > 0
    assert (moved["swapped_blocks"], moved["steps"]) == (3, 1)
    more = moved["predicted_seconds"] - kept["predicted_seconds"]
    assert more == pytest.approx(swap_seconds)
    still, went = (predicted_costs(plan, clock(n))["decode"]["predicted"] for n in (0, 3))
    assert went["seconds"] - still["seconds"] == pytest.approx(swap_seconds)


@pytest.mark.parametrize("tokens", [2, 7, 32])
def test_live_tensors_are_those_of_torchs_own_tracker(tokens: int) -> None:
    """MemTracker counts views of storages that were there before: those are named to it."""
    generator = torch.Generator().manual_seed(1)
    width, heads = 64, 4
    weights = [torch.randn(3 * width, width, generator=generator) for _ in range(4)]
    x = torch.randn(tokens, width, generator=generator)
    cache = torch.zeros(64, heads, width // heads)

    def step() -> torch.Tensor:
        hidden = x
        for weight in weights:
            parts = torch.nn.functional.linear(hidden, weight).view(tokens, 3, heads, -1)
            query, key, value = parts.unbind(1)
            cache[:tokens] = key
            keys = cache[:tokens].transpose(0, 1)
            scores = query.transpose(0, 1) @ keys.transpose(1, 2)
            mixed = torch.softmax(scores, -1) @ value.transpose(0, 1)
            hidden = hidden + mixed.transpose(0, 1).reshape(tokens, width)
        return hidden.argmax(-1)

    with torch.inference_mode():
        with LiveTensors() as live:
            step()
        tracker = MemTracker()
        tracker.track_external(*weights, x, cache)
        before = tracker.get_tracker_snapshot("current")[x.device]["Total"]
        with tracker:
            step()
    peak = tracker.get_tracker_snapshot("peak")[x.device]["Total"]
    assert live.peak_bytes == peak - before > 0


def test_live_tensors_peak_is_exact() -> None:
    a = torch.ones(1000)
    with LiveTensors() as live:
        b = a + 1
        c = b * 2
        del b
        d = c.view(10, 100)
        d.add_(1)
        e = torch.zeros(500)
        del c, d, e
    assert live.peak_bytes == 8000
    assert live.live_bytes == 0
