"""Ledger, clock and the tracker of live tensors: numbers in, numbers out."""

from __future__ import annotations

import torch

from parallel.instrument.clock import Contexts, Shape, StepClock
from parallel.instrument.ledger import Ledger, merge_waits
from parallel.layout.degrees import Degrees
from parallel.runtime.activations import LiveTensors


def test_ledger_adds_up_by_phase() -> None:
    ledger = Ledger()
    for phase, calls in (("prefill", 1), ("decode", 3)):
        ledger.phase = phase
        for _ in range(calls):
            ledger.add("tp", "all_reduce", "ffn", "gloo", 100, 0.5)
    rows = ledger.rows(2)
    assert [(r["phase"], r["calls"], r["bytes"], r["seconds"]) for r in rows] == [
        ("decode", 3, 300, 1.5),
        ("prefill", 1, 100, 0.5),
    ]
    assert {r["rank"] for r in rows} == {2} and rows[0]["wait_seconds"] is None
    ledger.reset()
    assert ledger.rows(2) == []


def test_waiting_is_the_time_beyond_the_groups_least() -> None:
    rows = []
    for rank, seconds in enumerate((3.0, 1.0, 5.0, 4.0)):
        ledger = Ledger("decode")
        ledger.add("tp", "all_reduce", "ffn", "gloo", 8, seconds)
        rows += ledger.rows(rank)
    merged = merge_waits(rows, Degrees(tp=2, dp=2).group)
    assert [r["wait_seconds"] for r in merged] == [2.0, 0.0, 1.0, 0.0]


def test_waiting_is_unknown_where_a_rank_has_no_such_row() -> None:
    ledger = Ledger("decode")
    ledger.add("pp", "send", "stage", "gloo", 8, 1.0)
    (row,) = merge_waits(ledger.rows(0), Degrees(pp=2).group)
    assert row["wait_seconds"] is None


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
