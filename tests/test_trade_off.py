"""Where a step's time went, what a layout saves, and the verdict: closed forms."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.report.figure import Figure, scaled
from parallel.report.sides import planned_side
from parallel.report.step_costs import StepCosts, step_costs, steps_run
from parallel.report.trade_off import trade_off
from parallel.report.verdict import DONT, OTHERWISE, SHARD, Candidate, decide
from tests.measured import made_plan, made_trade_off


def entry(
    rank: int,
    tp: int,
    pp: int,
    dp: int,
    alone: float,
    run: float = 0.0,
    steps: int = 10,
    **leads: Any,
) -> dict[str, Any]:
    """A rank whose mean decode takes `alone` seconds without communication, `run` with it."""
    return {
        "rank": rank,
        "coordinates": {"tp": tp, "pp": pp, "dp": dp},
        "muted": {"decode": {"steps": steps, "seconds": steps * alone}},
        "run": {"decode": {"steps": steps, "seconds": steps * run}},
        "leader": leads or None,
    }


def leader(
    step: float, run: float, wall: float, reply: float = 0.0, steps: int = 10
) -> dict[str, Any]:
    return {
        "wall_seconds": steps * wall,
        "run_seconds": steps * run,
        "reply_seconds": steps * reply,
        "phases": {"decode": {"steps": steps, "seconds": steps * step}},
    }


def test_a_step_of_two_tp_ranks() -> None:
    led = leader(step=13.0, run=12.0, wall=13.0)
    costs = step_costs([entry(0, 0, 0, 0, 8.0, 12.0, **led), entry(1, 1, 0, 0, 10.0)], "decode")
    assert costs == StepCosts(
        step=13.0, compute=9.0, imbalance=1.0, host=1.0, pipeline=0.0, communication=2.0
    )
    assert costs.without_communication == 10.0


def test_one_rank_has_no_communication() -> None:
    """Its second run may take another time than its first: that is noise, not communication."""
    costs = step_costs([entry(0, 0, 0, 0, 9.0, 12.0, **leader(12.5, 12.0, 12.5))], "decode")
    assert costs == StepCosts(12.5, 12.0, 0.0, 0.5, 0.0, 0.0)


def test_a_full_pipeline_waits_for_its_slowest_stage() -> None:
    """Two batches in flight, stages of 3 and 5 seconds, 1 of host work: a round lasts 10."""
    led = leader(step=10.5, run=3.25, wall=5.25, reply=1.0)
    costs = step_costs([entry(0, 0, 0, 0, 3.0, **led), entry(1, 0, 1, 0, 5.0)], "decode")
    assert costs == StepCosts(10.5, 8.0, 0.0, 1.0, 1.0, 0.5)


def test_an_empty_pipeline_is_the_sum_of_its_stages() -> None:
    led = leader(step=9.5, run=3.25, wall=9.5, reply=5.25)
    costs = step_costs([entry(0, 0, 0, 0, 3.0, **led), entry(1, 0, 1, 0, 5.0)], "decode")
    assert costs == StepCosts(9.5, 8.0, 0.0, 1.0, 0.0, 0.5)


def test_replicas_count_by_their_steps() -> None:
    first = entry(0, 0, 0, 0, 1.0, 1.0, steps=30, **leader(1.0, 1.0, 1.0, steps=30))
    second = entry(1, 0, 0, 1, 3.0, 3.0, steps=10, **leader(3.0, 3.0, 3.0, steps=10))
    costs = step_costs([first, second], "decode")
    assert costs is not None and costs.step == 1.5 and costs.compute == 1.5


def test_a_phase_without_steps_has_no_costs() -> None:
    assert step_costs([entry(0, 0, 0, 0, 1.0, 1.0, **leader(1.0, 1.0, 1.0))], "prefill") is None


seconds = st.floats(0.001, 100.0)


@given(st.lists(seconds, min_size=1, max_size=4), seconds, seconds)
def test_the_parts_sum_to_the_step(alone: list[float], run: float, beside: float) -> None:
    led = leader(run + beside, run, run + beside)
    entries = [entry(0, 0, 0, 0, alone[0], run, **led)]
    entries += [entry(i, i, 0, 0, s) for i, s in enumerate(alone[1:], start=1)]
    c = step_costs(entries, "decode")
    assert c is not None
    parts = c.compute + c.imbalance + c.host + c.pipeline + c.communication
    assert parts == pytest.approx(c.step)
    assert c.without_communication == pytest.approx(c.compute + c.host + c.pipeline)
    assert c.imbalance >= -1e-9


# -------------------------------------------------------------------------------- figures


def test_figures_know_their_error_and_their_difference() -> None:
    assert Figure(8, 10).to_json() == {"predicted": 8, "measured": 10, "error": -0.2}
    assert Figure(8).to_json() == {"predicted": 8, "measured": None, "error": None}
    assert Figure(8, 10).minus(Figure(3, 4)) == Figure(5, 6)
    assert Figure(8, 10).over(Figure(4, None)) == Figure(2, None)
    assert scaled(Figure(6, 9), 2, 3) == Figure(4, 6)
    assert isinstance(scaled(Figure(6), 2, 3).predicted, int)


def test_saved_bytes_are_differences_of_the_plans() -> None:
    """Also of the cache: what one rank would hold for as many tokens, not for its own many."""
    split, whole = made_plan(tp=2), made_plan(tp=1, context_tokens=64)
    result = trade_off(
        planned_side(split), planned_side(whole), "one rank", [], "throughput", {}, {}
    )
    one = whole["ranks"][0]["memory_bytes"]
    assert split["kv_cache_tokens"] != whole["kv_cache_tokens"]
    for saved, rank in zip(result.saved, split["ranks"], strict=True):
        held = rank["memory_bytes"]
        assert saved.causes["weights"].predicted == one["weights"] - held["weights"]
        tokens = split["kv_cache_tokens"]
        cache = one["kv_cache"] * tokens // whole["kv_cache_tokens"] - held["kv_cache"]
        assert saved.causes["kv_cache"].predicted == cache
        assert saved.total.predicted == sum(f.predicted or 0 for f in saved.causes.values())
    assert result.to_json()["saved"][0]["bytes"]["weights"]["measured"] is None


def test_times_beside_the_measured_ones_are_of_the_same_requests() -> None:
    """What its leader predicted of them; a step takes 10 ms there."""
    side = made_trade_off(tp=2).layout
    assert side.ttft_ms == Figure(pytest.approx(20), pytest.approx(30))
    assert side.tpot_ms == Figure(pytest.approx(10), pytest.approx(11))
    assert side.tokens_per_second == Figure(pytest.approx(40), pytest.approx(36))


def test_a_baseline_that_was_not_run_is_compared_with_the_plan() -> None:
    """Prediction with prediction of the same load, whatever requests were measured."""
    side, one = made_trade_off(tp=2).layout, made_plan()
    result = trade_off(side, planned_side(one), "one rank", [], "throughput", {}, {})
    assert result.speed_up is not None
    speed = side.plan["tokens_per_second"] / one["tokens_per_second"]
    assert result.speed_up.predicted == pytest.approx(speed)
    assert result.speed_up.measured is None


# -------------------------------------------------------------------------------- verdicts


def candidate(
    name: str, speed: float, measured: bool = False, price: float | None = None
) -> Candidate:
    tp, pp, dp = (int(word) for word in name.split("x"))
    return Candidate(tp, pp, dp, 100 // (tp * pp), 1.0, 1e3 / speed, speed, price, False, measured)


ONE, TWO = candidate("1x1x1", 100), candidate("2x1x1", 150)


@pytest.mark.parametrize(
    ("layout", "baseline", "others", "decision", "use"),
    [
        (TWO, ONE, [TWO, ONE], SHARD, "tp=2 pp=1 dp=1"),
        (candidate("2x1x1", 90), ONE, [], DONT, "tp=1 pp=1 dp=1"),
        (candidate("2x1x1", 100), ONE, [], DONT, "tp=1 pp=1 dp=1"),
        (TWO, ONE, [TWO, ONE, candidate("1x2x1", 157)], SHARD, "tp=2 pp=1 dp=1"),
        (TWO, ONE, [TWO, ONE, candidate("1x2x1", 158)], OTHERWISE, "tp=1 pp=2 dp=1"),
        (TWO, ONE, [TWO, ONE, candidate("1x1x2", 200)], DONT, "tp=1 pp=1 dp=2"),
        (TWO, ONE, [TWO, ONE, candidate("4x1x1", 900)], SHARD, "tp=2 pp=1 dp=1"),
        (TWO, None, [TWO], SHARD, "tp=2 pp=1 dp=1"),
        (ONE, None, [ONE], DONT, "tp=1 pp=1 dp=1"),
        (candidate("1x1x2", 90), None, [candidate("1x1x2", 90), TWO], OTHERWISE, "tp=2 pp=1 dp=1"),
    ],
)
def test_the_verdict(
    layout: Candidate, baseline: Candidate | None, others: list[Candidate], decision: str, use: str
) -> None:
    verdict = decide(layout, baseline, others)
    assert (verdict.decision, verdict.layout) == (decision, use)
    assert verdict.reasons and all(verdict.reasons)


def test_measured_speeds_go_before_predicted_ones() -> None:
    """Predicted, one rank would win; measured, two do. What was run isn't judged by prediction."""
    layout, one = candidate("2x1x1", 150, measured=True), candidate("1x1x1", 100, measured=True)
    foretold = [candidate("1x1x1", 300), candidate("2x1x1", 120)]
    assert decide(layout, one, foretold).decision == SHARD


def test_a_layout_not_run_is_compared_with_what_was_foretold() -> None:
    """Measured at half of what was predicted, the layout isn't beaten by the same prediction."""
    layout = candidate("2x1x1", 75, measured=True)
    foretold = [candidate("2x1x1", 150), candidate("1x2x1", 151)]
    assert decide(layout, None, foretold).decision == SHARD


def test_the_objective_decides_what_is_better() -> None:
    assert decide(TWO, ONE, [TWO, ONE], "fewest_gpus").decision == DONT
    assert decide(TWO, ONE, [TWO, ONE], "cost").decision == DONT
    dear, cheap = candidate("1x1x1", 100, price=2.0), candidate("2x1x1", 150, price=1.0)
    assert decide(cheap, dear, [cheap, dear], "cost").decision == SHARD
    assert decide(TWO, ONE, [TWO, ONE], "latency").decision == SHARD


# ------------------------------------------------------------------------------ the whole


def test_a_measured_trade_off_adds_up() -> None:
    """Own work 7 and 7.7 ms of a step of 10, half a millisecond of it the engine's."""
    body = made_trade_off(tp=2).to_json()
    decode = body["layout"]["phases"]["decode"]
    measured = {key: decode[f"{key}_ms"]["measured"] for key in _PARTS}
    assert measured == pytest.approx(
        {"compute": 7.35, "imbalance": 0.35, "host": 0.5, "pipeline": 0.0, "communication": 1.8}
    )
    assert decode["step_ms"]["measured"] == pytest.approx(10.0)
    assert decode["without_communication_ms"]["measured"] == pytest.approx(7.85)
    assert decode["step_ms"]["error"] == pytest.approx(0.07)
    assert decode["ms_per_token"]["communication"]["measured"] == pytest.approx(1.8 / 4)
    assert [(r["rank"], r["steps"]) for r in decode["ranks"]] == [(0, 20), (1, 20)]
    assert body["speed_up"]["measured"] == pytest.approx(1.7)
    assert body["verdict"]["decision"] in (SHARD, OTHERWISE, DONT)
    for entry_ in body["saved"]:
        weights = entry_["bytes"]["weights"]
        assert weights["predicted"] == weights["measured"] and weights["error"] == 0


_PARTS = ("compute", "imbalance", "host", "pipeline", "communication")


@pytest.mark.parametrize(("count", "said"), [(1, "1 step of 2.5"), (20, "20 steps of 2.5")])
def test_steps_are_counted_in_words(count: int, said: str) -> None:
    assert steps_run({"steps": count, "tokens_per_step": 2.5}) == f"{said} tokens"
