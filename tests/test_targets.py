"""Objectives and limits: what is chosen, what is refused, and whether the advice is true."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.errors import CapacityError, ConfigError
from parallel.layout.degrees import Degrees
from parallel.layout.heads import head_map
from parallel.planner.formats import choose_formats
from parallel.planner.plan import Plan
from parallel.planner.search import Wanted
from parallel.planner.targets import OBJECTIVES, Targets, _above
from tests.specs import small_spec, toy_cluster, toy_device, toy_planner


def plans(targets: Targets | None = None) -> tuple[Plan, ...]:
    planner = toy_planner()
    return replace(planner, targets=targets or Targets()).search(Wanted()).plans


@pytest.mark.parametrize(
    ("objective", "figure"),
    [
        ("throughput", lambda p: -p.tokens_per_second),
        ("latency", lambda p: p.tpot_seconds),
        ("cost", lambda p: p.dollars_per_million_tokens),
        ("fewest_gpus", lambda p: p.layout.degrees.world_size),
    ],
)
def test_the_objective_decides(objective: str, figure: object) -> None:
    found = plans(Targets(objective))
    figures = [figure(p) for p in found]  # type: ignore[operator]
    assert figures == sorted(figures) and len(found) == len(plans())
    outcome = replace(toy_planner(), targets=Targets(objective)).search(Wanted())
    assert outcome.choice.startswith(f"{found[0].layout.degrees}: {OBJECTIVES[objective]} of ")


def test_cost_without_prices_counts_device_time() -> None:
    free = toy_cluster(*[toy_device(4.0, dollars_per_hour=None)] * 4)
    found = toy_planner(cluster=free, targets=Targets("cost")).search(Wanted()).plans
    shares = [p.layout.degrees.world_size / p.tokens_per_second for p in found]
    assert shares == sorted(shares)


@pytest.mark.parametrize("key", ["ttft", "tpot", "gpus", "dollars"])
def test_a_limit_refuses_what_breaks_it_and_its_advice_is_true(key: str) -> None:
    def figure(p: Plan) -> float:
        return {
            "ttft": p.ttft_seconds,
            "tpot": p.tpot_seconds,
            "gpus": float(p.layout.degrees.world_size),
            "dollars": p.dollars_per_hour or 0.0,
        }[key]

    free = plans()
    middle = sorted(figure(p) for p in free)[len(free) // 2]
    limit = {
        "ttft": lambda v: Targets(ttft_seconds=v),
        "tpot": lambda v: Targets(tpot_seconds=v),
        "gpus": lambda v: Targets(devices=int(v)),
        "dollars": lambda v: Targets(dollars_per_hour=v),
    }[key]
    kept = replace(toy_planner(), targets=limit(middle)).search(Wanted())
    assert {p.layout.degrees for p in kept.plans} == {
        p.layout.degrees for p in free if figure(p) <= middle
    }
    refused = [r for r in kept.rejected if "is over" in r.reason or "are over" in r.reason]
    assert len(refused) == len(free) - len(kept.plans) > 0
    for r in refused:
        word, _, allowed = r.suggestion.rpartition("=")
        value = float(allowed) / (1e3 if word.endswith("_ms") else 1)
        planner = replace(toy_planner(), targets=limit(value))
        assert planner.targets.missed(planner.plan(r.degrees, Wanted())) is None


def test_all_limits_that_are_broken_are_told_at_once() -> None:
    limits = Targets(ttft_seconds=1e-7, tpot_seconds=1e-7, devices=1, dollars_per_hour=0.5)
    outcome = replace(toy_planner(), targets=limits).search(Wanted())
    assert not outcome.plans
    for r in outcome.rejected:
        if r.excess is None:
            continue
        word, *changes = r.suggestion.split()
        allowed = {key: float(v) for key, _, v in (c.partition("=") for c in changes)}
        assert word == "allow" and all(f"over {key}=" in r.reason for key in allowed)
        assert ("budget.gpus" in allowed) == (r.degrees.world_size > 1)
        kept = Targets(
            ttft_seconds=allowed["slo.ttft_ms"] / 1e3,
            tpot_seconds=allowed["slo.tpot_ms"] / 1e3,
            devices=int(allowed.get("budget.gpus", 1)),
            dollars_per_hour=allowed.get("budget.dollars_per_hour", 0.5),
        )
        assert kept.missed(toy_planner().plan(r.degrees, Wanted())) is None
    nearest = min((r for r in outcome.rejected if r.excess), key=lambda r: r.excess or 0.0)
    with pytest.raises(CapacityError, match=f"all break the limits; nearest is {nearest.degrees}"):
        outcome.best()


@given(st.floats(1e-3, 1e9))
def test_a_limit_is_said_in_plain_digits_and_never_below(value: float) -> None:
    digits = _above(value)
    assert "e" not in digits.lower()
    assert value <= float(digits) <= value * 1.011


def test_a_price_limit_needs_prices() -> None:
    free = toy_cluster(toy_device(4.0, dollars_per_hour=None))
    planner = toy_planner(cluster=free, targets=Targets(dollars_per_hour=5.0))
    (refused,) = planner.search(Wanted()).rejected
    assert "has no price" in refused.reason and "dollars_per_hour" in refused.suggestion


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": "fast"}, "objective=fast is unknown"),
        ({"tpot_seconds": 0.0}, "slo.tpot_ms=0 is out of range"),
        ({"devices": -1}, "budget.gpus=-1 is out of range"),
    ],
    ids=str,
)
def test_targets_that_mean_nothing(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Targets(**values)  # type: ignore[arg-type]


def test_half_precision_is_weighed_beside_what_is_stored() -> None:
    planner = toy_planner(memory_gib=0.7)
    half = choose_formats(planner.spec, "bf16")
    both = replace(planner, other_formats=(half,)).search(Wanted())
    names = {p.formats.weights.name for p in both.plans}
    assert names == {"fp32", "bf16"} and both.plans[0].formats == half
    whole = Degrees()
    assert any(r.degrees == whole and r.formats.weights.name == "fp32" for r in both.rejected)
    assert any(p.layout.degrees == whole and p.formats == half for p in both.plans)


def test_heads_that_can_be_shared_in_two_ways_are_both_tried() -> None:
    """9 heads over 3 KV heads on two ranks: 6 and 3, or 5 and 4 with a KV head held twice."""
    spec = small_spec(
        hidden_size=576,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        intermediate_size=1536,
        vocab_size=4096,
        max_position_embeddings=4096,
    )
    assert head_map(9, 3, 2, "groups") != head_map(9, 3, 2, "replicate")
    planner = toy_planner(spec)
    chosen = planner.plan(Degrees(tp=2), Wanted())
    both = [planner.plan(Degrees(tp=2), Wanted(heads=h)) for h in ("groups", "replicate")]
    assert chosen.tokens_per_second == max(p.tokens_per_second for p in both)
    assert chosen.layout.heads in ("groups", "replicate")
