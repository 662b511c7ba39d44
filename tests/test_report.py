"""The report's JSON form, its summary, and the tables of plans and reports."""

from __future__ import annotations

import json
import sys
from io import StringIO
from subprocess import run
from typing import Any

import pytest
from rich.console import Console

from parallel.report.render import COLUMNS, make_console, ranges
from parallel.report.report import (
    CAUSES,
    build_report,
    relative_error,
    sum_collectives,
    summary_lines,
)
from parallel.report.tables import plan_tables, report_tables
from parallel.units import GIB, MIB

Json = dict[str, Any]


def memory(weights: int, kv_cache: int) -> Json:
    figures = {
        "weights": weights,
        "kv_cache": kv_cache,
        "activations": 1000 * MIB,
        "communication": 1001 * MIB,
        "runtime": 1002 * MIB,
    }
    peak = weights + kv_cache + figures["activations"]
    total = sum(figures.values())
    return {**figures, "peak_tensors": peak, "total": total, "budget": 1003 * GIB}


def plan(tp: int = 2, pp: int = 1, dp: int = 1, device: str = "cpu") -> Json:
    count = tp * pp * dp
    phase = {
        "seconds": 0.25,
        "communication_seconds": 0.05,
        "communication_bytes": 3 * MIB,
        "communication_seconds_per_token": 0.0125,
        "communication_bytes_per_token": 3 * MIB / 4,
        "imbalance_seconds": 0.01,
        "tokens": 4,
        "bubble": 0.5,
    }
    return {
        "model": "toy",
        "cluster": "local",
        "tp": tp,
        "pp": pp,
        "dp": dp,
        "world_size": count,
        "precision": {"weights": "bf16"},
        "pareto": True,
        "stages": [
            {
                "layers": [4 * stage, 4 * stage + 4],
                "tp": tp,
                "ranks": [(d * pp + stage) * tp + t for d in range(dp) for t in range(tp)],
                "embedding": stage == 0,
                "head": stage == pp - 1,
            }
            for stage in range(pp)
        ],
        "ranks": [
            {
                "rank": rank,
                "device": device,
                "coordinates": {"tp": rank % tp, "pp": rank // tp % pp, "dp": rank // tp // pp},
                "memory_bytes": memory(600 * MIB, 300 * MIB),
            }
            for rank in range(count)
        ],
        "kv_cache_tokens": 4096,
        "prefill": phase,
        "decode": phase,
        "ttft_ms": 123.0,
        "tpot_ms": 45.0,
        "tokens_per_second": 12345.6,
        "dollars_per_million_tokens": 1.5,
        "joules_per_token": 2.25,
        "kv_cache_requests": 12,
    }


def found(rank: int, **changed: int | None) -> Json:
    measured = {**memory(600 * MIB, 300 * MIB), **changed}
    return {
        "rank": rank,
        "measured_bytes": measured,
        "bytes_read": 601 * MIB,
        "peak_rss_bytes": 2 * GIB,
        "memory_timeline": [{"rank": rank, "seconds": 1.5, "event": "loaded", "resident": GIB}],
        "instrument": {"steps": 102, "seconds": 0.0102 - 0.0051 * rank},
    }


def collective(rank: int, phase: str = "decode", **changed: Any) -> Json:
    return {
        "rank": rank,
        "axis": "tp",
        "op": "reduce_scatter",
        "phase": phase,
        "layer": "feed_forward",
        "backend": "deepspeed_shm",
        "calls": 100,
        "bytes": 1000 * 1024,
        "seconds": 0.5,
        "wait_seconds": 0.125,
        **changed,
    }


STEPS = {
    "prefill": {"predicted_seconds": 1.5, "measured_seconds": 1.0, "steps": 2},
    "decode": {"predicted_seconds": 1.8, "measured_seconds": 2.0, "steps": 100},
}


def printed(render: Any, value: Json) -> str:
    file = StringIO()
    render(value, make_console(file))
    text = file.getvalue()
    assert "\x1b" not in text
    return text


def tables_of(text: str) -> list[str]:
    """The lines of the tables: from a header to the next blank line."""
    lines = text.splitlines()
    return [line for line in lines if line.startswith("─") or "  " in line.strip()]


# ----------------------------------------------------------------------------------- report


def test_report_has_the_contract_form() -> None:
    report = build_report(plan(), [found(0), found(1)], [collective(0), collective(1)], STEPS)
    assert {"plan", "ranks", "collectives", "steps"} <= report.keys()
    assert [rank["rank"] for rank in report["ranks"]] == [0, 1]
    first = report["ranks"][0]
    assert tuple(first["memory_bytes"]) == CAUSES
    assert first["memory_bytes"]["weights"] == {"predicted": 600 * MIB, "measured": 600 * MIB}
    assert (first["bytes_read"], first["peak_rss_bytes"]) == (601 * MIB, 2 * GIB)
    assert report["steps"] == STEPS
    assert json.loads(json.dumps(report)) == report


def test_a_rank_that_did_not_answer_is_unmeasured() -> None:
    report = build_report(plan(), [found(1)], [], STEPS)
    silent = report["ranks"][0]
    assert silent["bytes_read"] is None
    assert {figures["measured"] for figures in silent["memory_bytes"].values()} == {None}
    assert summary_lines(report)[0] == "memory was not measured on rank 0"
    assert "not measured" in printed(report_tables, report)


def test_saved_against_one_rank() -> None:
    summed = build_report(plan(2, 2, 2), [], [], {})["saved"]
    assert summed["one_rank_bytes"] == 4 * 900 * MIB
    assert summed["basis"] == "sum of the ranks"
    assert [rank["bytes"] for rank in summed["ranks"]] == [3 * 900 * MIB] * 8
    one = {"weights": 1100 * MIB, "kv_cache": 600 * MIB}
    planned = build_report(plan(), [], [], {}, one)["saved"]
    assert planned == {
        "one_rank_bytes": 1700 * MIB,
        "basis": "plan of one rank",
        "ranks": [{"rank": 0, "bytes": 800 * MIB}, {"rank": 1, "bytes": 800 * MIB}],
    }


def test_communication_per_step_is_that_of_the_busiest_rank() -> None:
    entries = [
        collective(0, seconds=0.2),
        collective(0, layer="attention", seconds=0.2, bytes=24 * 1024),
        collective(1, seconds=0.1),
        collective(1, phase="prefill", seconds=0.25),
    ]
    cost = build_report(plan(), [], entries, STEPS)["communication"]
    assert cost["decode"]["seconds_per_step"] == pytest.approx(0.004)
    assert cost["decode"]["share"] == pytest.approx(0.2)
    assert cost["decode"]["bytes_per_step"] == pytest.approx(1024 * 10.24)
    assert cost["prefill"]["share"] == pytest.approx(0.25)


def test_communication_of_a_phase_without_steps() -> None:
    steps = {"decode": {"predicted_seconds": 0.0, "measured_seconds": 0.0, "steps": 0}}
    report = build_report(plan(), [found(0), found(1)], [], steps)
    assert set(report["communication"]["decode"].values()) == {None}
    assert summary_lines(report)[-1] == "decode: no step was run"
    printed(report_tables, report)


def test_swapping_is_said_where_there_was_any() -> None:
    swapped = {"swapped_blocks": 7, "predicted_swap_seconds": 0.3}
    steps = {"prefill": STEPS["prefill"], "decode": {**STEPS["decode"], **swapped}}
    prefill, decode = summary_lines(build_report(plan(), [found(0), found(1)], [], steps))[2:4]
    assert "300.00 ms of it for 7 blocks swapped" in decode and "swapped" not in prefill


def test_collectives_are_summed_over_ranks() -> None:
    entries = [
        collective(0, seconds=0.1),
        collective(1, seconds=0.3, bytes=10, wait_seconds=None),
        collective(0, phase="prefill", seconds=1.0),
    ]
    first, second = sum_collectives(entries)
    assert (first["phase"], first["ranks"]) == ("prefill", 1)
    assert (second["ranks"], second["calls"], second["bytes"]) == (2, 100, 1000 * 1024)
    assert second["all_ranks_bytes"] == 1000 * 1024 + 10
    assert (second["seconds"], second["wait_seconds"]) == (0.3, None)
    assert first["wait_seconds"] == 0.125
    assert sum_collectives([]) == []


@pytest.mark.parametrize(
    ("predicted", "measured", "error"),
    [(1.1, 1.0, 0.1), (0.5, 1.0, -0.5), (1.0, 0, None), (None, 1.0, None), (1.0, None, None)],
)
def test_relative_error(
    predicted: float | None, measured: float | None, error: float | None
) -> None:
    assert relative_error(predicted, measured) == (None if error is None else pytest.approx(error))


def test_summary_of_a_run_as_planned() -> None:
    one = {"weights": 1100 * MIB, "kv_cache": 600 * MIB}
    entries = [collective(rank) for rank in (0, 1)]
    lines = summary_lines(build_report(plan(), [found(0), found(1)], entries, STEPS, one))
    assert lines == [
        "weights and KV cache: as planned on every rank, to the byte",
        "tp=2 pp=1 dp=1: saves each rank 800.00 MiB (47%) of the 1.66 GiB that one rank would hold",
        "prefill: 1.00 s in all, predicted 1.50 s (+50%); "
        "communication 0.0%, 0 ns and 0 B per step",
        "decode: 2.00 s in all, predicted 1.80 s (-10%); "
        "communication 25.0%, 5.00 ms and 10.00 KiB per step, a token of each sequence, "
        "1.25 ms of it waiting for late ranks",
        "instruments: 100.00 µs per step, 0.34% of it",
    ]


def test_summary_names_what_differs() -> None:
    measured = [found(0), found(1, weights=601 * MIB, kv_cache=299 * MIB)]
    first = summary_lines(build_report(plan(), measured, [], STEPS))[0]
    assert first == (
        "memory differs from the plan: rank 1 weights +1.00 MiB, rank 1 kv_cache -1.00 MiB"
    )


# ----------------------------------------------------------------------------------- tables


def test_plan_table() -> None:
    rejected = [
        {"tp": 7, "pp": 1, "dp": 1, "reason": "no [bold] reason " * 12, "suggestion": "use tp=4"}
    ]
    text = printed(plan_tables, {"plans": [plan(2), plan(1)], "rejected": rejected})
    assert "Layouts that fit: 2" in text
    assert "Plan: tp=2 pp=1 dp=1, toy on local" in text
    for word in (
        "600.00 MiB",
        "300.00 MiB",
        "768.00 KiB",
        "12.50 ms",
        "2.25 J",
        "20.0%",
        "50%",
        "12345.6",
        "0-1",
    ):
        assert word in text
    assert "[bold]" in text and "use tp=4" in text
    assert all(len(line) <= COLUMNS for line in tables_of(text))


def test_what_swapping_takes_is_shown_where_there_is_such_a_thing() -> None:
    planned = plan()
    assert "swap" not in printed(plan_tables, {"plans": [planned]})
    for rank in planned["ranks"]:
        rank["memory_bytes"]["swap"] = 77 * MIB
    assert "77.00 MiB" in printed(plan_tables, {"plans": [planned]})
    report = build_report(planned, [found(0, swap=78 * MIB)], [], {})
    assert report["ranks"][0]["memory_bytes"]["swap"] == {
        "predicted": 77 * MIB,
        "measured": 78 * MIB,
    }


def test_plan_of_stages_and_mixed_devices() -> None:
    mixed = plan(2, 2)
    for rank in mixed["ranks"][2:]:
        rank["device"] = "l40s"
    text = printed(plan_tables, {"plans": [mixed]})
    assert "ranks 0-1: layers 0-3, embedding" in text
    assert "ranks 2-3: layers 4-7, head" in text
    assert "l40s" in text
    assert all(len(line) <= COLUMNS for line in tables_of(text))
    assert "Layouts that fit" not in text


def test_no_legal_plan() -> None:
    rejected = [
        {"tp": tp, "pp": 1, "dp": 1, "reason": f"{tp} is too large", "suggestion": ""}
        for tp in range(20)
    ]
    text = printed(plan_tables, {"plans": [], "rejected": rejected})
    assert "No legal plan" in text
    assert "Rejected: 20" in text
    assert "11 is too large" in text
    assert "and 8 more rejected layouts" in text


def test_refusals_that_differ_in_dp_alone_share_a_row() -> None:
    rejected = [
        {
            "tp": 2,
            "pp": 1,
            "dp": dp,
            "reason": f"toy doesn't fit with tp=2 pp=1 dp={dp}: {'short' if dp < 4 else 'long'}",
            "suggestion": "use tp=4",
        }
        for dp in range(1, 6)
    ]
    text = printed(plan_tables, {"plans": [], "rejected": rejected})
    assert "tp=2 pp=1 dp=1-3" in text and "tp=2 pp=1 dp=4-5" in text
    assert text.count("toy doesn't fit: ") == 2


def test_the_instruments_cost_is_that_of_the_rank_where_it_is_most() -> None:
    report = build_report(plan(), [found(0), found(1)], [], STEPS)
    assert report["instrument"]["seconds_per_step"] == pytest.approx(1e-4)
    assert report["instrument"]["share"] == pytest.approx(0.0102 / 3.0)
    assert [rank["rank"] for rank in report["instrument"]["ranks"]] == [0, 1]
    assert [row["rank"] for row in report["memory_timeline"]] == [0, 1]
    nothing = build_report(plan(), [], [], STEPS)["instrument"]
    assert nothing == {"seconds_per_step": None, "share": None, "ranks": []}


def test_a_plain_console_shows_all_in_a_pipe() -> None:
    file = StringIO()
    plan_tables({"plans": [plan(), plan()], "rejected": []}, Console(file=file, width=40))
    assert file.getvalue() == printed(plan_tables, {"plans": [plan(), plan()], "rejected": []})


def test_prices_may_be_unknown() -> None:
    free = {**plan(), "dollars_per_million_tokens": None}
    text = printed(plan_tables, {"plans": [free, free], "rejected": []})
    assert "per million" not in text


def test_report_table() -> None:
    measured = [found(0), found(1, activations=800 * MIB)]
    entries = [collective(rank, phase) for rank in (0, 1) for phase in ("prefill", "decode")]
    entries.append(collective(0, "load", axis="pp", op="send", seconds=0.25))
    report = build_report(plan(), measured, entries, STEPS)
    text = printed(report_tables, report)
    for word in ("-200.00 MiB", "+25.0%", "exact", "601.00 MiB", "2.00 GiB", "deepspeed_shm"):
        assert word in text
    for phase in ("prefill", "decode", "load"):
        assert f"Collectives in {phase}" in text
    assert summary_lines(report)[-1] in text
    assert all(len(line) <= COLUMNS for line in tables_of(text.split("weights and KV")[0]))


def test_report_table_of_many_ranks() -> None:
    report = build_report(plan(16), [found(rank) for rank in range(16)], [], STEPS)
    assert "and 8 more ranks" in printed(report_tables, report)


@pytest.mark.parametrize(
    ("ranks", "text"), [([0], "0"), ([3, 1, 2], "1-3"), ([0, 1, 4, 6, 7], "0-1,4,6-7"), ([], "")]
)
def test_ranges(ranks: list[int], text: str) -> None:
    assert ranges(ranks) == text


def test_reports_need_no_torch() -> None:
    code = "import sys, parallel.report.tables; sys.exit('torch' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
