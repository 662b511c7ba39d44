"""The search over layouts: refusals whose numbers are true, advice that works, and ranking."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.errors import CapacityError, HardwareError, LayoutError, UserError
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.formats import choose_formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.memory import kv_bytes_per_token
from parallel.planner.plan import Plan
from parallel.planner.room import Room
from parallel.planner.search import Outcome, Planner, Rejected, Wanted
from parallel.units import format_bytes
from tests.specs import BIG, toy_cluster, toy_device, toy_planner

HALF = choose_formats(BIG, "bf16")

# ---------------------------------------------------------------------------- refusals


def test_the_numbers_of_a_refusal_are_true() -> None:
    tight = toy_planner(devices=1, memory_gib=0.25)
    layout = Layout.make(BIG, Degrees())
    room = Room.of(layout, tight.cluster, tight.formats, tight.limits, tight.budget)
    # 128 tokens: one request of the workload.
    roomy = room.memory(8)[0]
    with pytest.raises(CapacityError) as caught:
        tight.plan(Degrees(), Wanted())
    cache = 8 * 16 * kv_bytes_per_token(layout, 0, tight.formats)
    needed = roomy.weights + roomy.activations + cache
    for words in (
        f"doesn't fit with tp=1 pp=1 dp=1: rank 0 needs {format_bytes(needed)}",
        f"weights {format_bytes(roomy.weights)}",
        f"KV cache of one request {format_bytes(cache)}",
        f"activations about {format_bytes(roomy.activations)}",
        "its budget is 256.00 MiB",
    ):
        assert words in str(caught.value)
    exact = toy_planner(devices=1, cluster=toy_cluster(toy_device(memory_bytes=needed)))
    assert exact.plan(Degrees(), Wanted()).kv_cache_tokens == 128
    one_less = toy_planner(devices=1, cluster=toy_cluster(toy_device(memory_bytes=needed - 1)))
    with pytest.raises(CapacityError):
        one_less.plan(Degrees(), Wanted())


def test_the_fullest_rank_is_named() -> None:
    small, large = toy_device(0.3, "small"), toy_device(4.0, "large")
    planner = toy_planner(cluster=toy_cluster(large, small))
    with pytest.raises(CapacityError, match="rank 1 needs"):
        planner.plan(Degrees(tp=2), Wanted())


def followed(planner: Planner, rejected: Rejected) -> Plan:
    """The plan made as the suggestion says."""
    words, degrees, wanted = rejected.suggestion, rejected.degrees, Wanted()
    if found := re.fullmatch(r"use tp=(\d+) pp=(\d+) dp=(\d+)", words):
        degrees = Degrees(*map(int, found.groups()))
    elif found := re.fullmatch(r"use memory_share=(0\.\d\d)", words):
        planner = replace(planner, budget=Budget(share=float(found[1])))
    elif words == "use precision.weights=bf16":
        planner = replace(planner, formats=choose_formats(planner.spec, "bf16"))
    elif found := re.fullmatch(r"use engine\.step_tokens=(\d+)", words):
        limits = replace(planner.limits, step_tokens=int(found[1]))
        planner = replace(planner, limits=limits)
    elif found := re.fullmatch(r"raise the budget to memory_gib=([\d.]+)", words):
        planner = replace(planner, budget=Budget(float(found[1])))
    elif found := re.match(r"use devices with at least ([\d.]+) GiB each", words):
        device = toy_device(float(found[1]))
        planner = replace(planner, cluster=toy_cluster(*[device] * degrees.world_size))
        if budget := re.search(r" and memory_gib=([\d.]+)$", words):
            planner = replace(planner, budget=Budget(float(budget[1])))
    else:
        raise AssertionError(words)
    return planner.plan(degrees, wanted)


ALONE = Wanted(tp=1, pp=1, dp=1)
LONG = EngineLimits(step_tokens=8192, requests=8)
PROMPTS = Workload(input_tokens=1500, output_tokens=100)


@pytest.mark.parametrize(
    ("planner", "words"),
    [
        (toy_planner(memory_gib=0.5), "use tp="),
        (toy_planner(memory_gib=0.5, devices=1), "use precision.weights=bf16"),
        (
            toy_planner(memory_gib=0.6, devices=1, limits=LONG, formats=HALF, workload=PROMPTS),
            "use engine.step_tokens=128",
        ),
        (toy_planner(devices=1, budget=Budget(share=0.05)), "raise the budget to memory_gib="),
        (toy_planner(memory_gib=0.2, devices=1), "use devices with at least"),
    ],
    ids=lambda v: v.split("=")[0] if isinstance(v, str) else "",
)
def test_suggestions_are_true(planner: Planner, words: str) -> None:
    outcome = planner.search(ALONE)
    assert outcome.plans == ()
    (rejected,) = outcome.rejected
    assert rejected.suggestion.startswith(words)
    assert "doesn't fit" in rejected.reason
    followed(planner, rejected)
    with pytest.raises(CapacityError) as caught:
        outcome.best()
    assert str(caught.value) == f"{rejected.reason}; {rejected.suggestion}"


def test_a_little_more_of_a_device_comes_before_more_devices() -> None:
    def asked(share: float) -> Outcome:
        return toy_planner(devices=2, budget=Budget(share=share)).search(ALONE)

    least = next(n for n in range(1, 96) if asked(n / 100).plans) / 100
    for short in (0.01, 0.03):
        (rejected,) = asked(least - short).rejected
        assert rejected.suggestion == f"use memory_share={least:.2f}"
    (rejected,) = asked(least - 0.04).rejected
    assert rejected.suggestion.startswith("use tp=")
    fixed = Budget(4 * (least - 0.01))
    (rejected,) = toy_planner(devices=2, budget=fixed).search(ALONE).rejected
    assert rejected.suggestion.startswith("use tp=")


@settings(max_examples=30)
@given(
    st.floats(0.05, 1.0),
    st.integers(1, 4),
    st.sampled_from((64, 4096)),
    st.booleans(),
    st.sampled_from((Budget(), Budget(0.1), Budget(share=0.3))),
)
def test_any_suggestion_is_true(
    memory: float, devices: int, step: int, half: bool, budget: Budget
) -> None:
    planner = toy_planner(
        memory_gib=memory,
        devices=devices,
        limits=EngineLimits(step_tokens=step, requests=8),
        formats=choose_formats(BIG, "bf16" if half else "fp32"),
        budget=budget,
    )
    for rejected in planner.search(Wanted(dp=1)).rejected:
        followed(planner, rejected)


def test_a_budget_no_device_has_is_not_suggested() -> None:
    """Of a mixed cluster the smallest device counts."""
    cluster = toy_cluster(toy_device(8.0), toy_device(0.2))
    outcome = toy_planner(cluster=cluster, formats=choose_formats(BIG, "bf16")).search(
        Wanted(2, 1, 1)
    )
    assert "(the smallest here has 0.20)" in outcome.rejected[0].suggestion


# ---------------------------------------------------------------------------- search


def degrees_of(outcome: Outcome) -> set[tuple[int, int, int]]:
    found = [p.layout.degrees for p in outcome.plans] + [r.degrees for r in outcome.rejected]
    assert len(set(found)) == len(found)
    return {(d.tp, d.pp, d.dp) for d in found}


def test_every_layout_is_planned_or_rejected() -> None:
    outcome = toy_planner(memory_gib=0.7).search(Wanted())
    assert degrees_of(outcome) == {
        (tp, pp, dp)
        for tp in range(1, 5)
        for pp in range(1, 5)
        for dp in range(1, 5)
        if tp * pp * dp <= 4
    }
    assert outcome.plans and outcome.rejected
    speeds = [(-p.tokens_per_second, p.layout.degrees.world_size) for p in outcome.plans]
    assert speeds == sorted(speeds)
    assert outcome.best() == outcome.plans[0].marked(choice=outcome.choice)
    assert outcome.choice.startswith(f"{outcome.plans[0].layout.degrees}: most tokens per second")


def test_only_the_ranks_that_were_started() -> None:
    found = degrees_of(toy_planner(devices=6).search(Wanted(world_size=6)))
    assert found == {
        (t, p, 6 // t // p) for t in (1, 2, 3, 6) for p in (1, 2, 3, 6) if 6 % (t * p) == 0
    }
    assert degrees_of(toy_planner().search(Wanted(tp=2, world_size=4))) == {(2, 1, 2), (2, 2, 1)}
    with pytest.raises(LayoutError, match="start another number of ranks"):
        toy_planner().search(Wanted(tp=2, world_size=3)).best()


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted(17, 1, 1), "tp=17 is more than the 16 query heads"),
        (Wanted(1, 9, 1), "pp=9 is more than the 8 layers"),
        (Wanted(1, 1, 5), "rank 4 has no device: cluster 'toys' has 4"),
        (Wanted(1, 2, 1, stages=(4, 5)), "stages=[4, 5] must be 2 positive numbers"),
        (Wanted(8, 1, 1, heads="groups"), "tp=8 is more than the 4 KV heads"),
    ],
)
def test_reasons_of_rejections(wanted: Wanted, words: str) -> None:
    (rejected,) = toy_planner().search(wanted).rejected
    assert words in rejected.reason
    assert rejected.to_json()["suggestion"]
    assert rejected.to_json()["tp"] == wanted.tp
    with pytest.raises(UserError, match=re.escape(words)):
        toy_planner().search(wanted).best()


def test_illegal_degrees_raise() -> None:
    with pytest.raises(HardwareError):
        toy_planner().plan(Degrees(tp=5), Wanted())
    with pytest.raises(LayoutError):
        toy_planner().search(Wanted(tp=0))


def test_pareto_marks() -> None:
    expensive = toy_device(4.0, dollars_per_hour=50.0)
    for cluster in (toy_cluster(*[toy_device(4.0)] * 4), toy_cluster(toy_device(4.0), expensive)):
        found = toy_planner(cluster=cluster).search(Wanted()).plans

        def point(p: Plan) -> tuple[float, ...]:
            cost = p.dollars_per_million_tokens
            assert cost is not None
            return p.tpot_seconds, -p.tokens_per_second, p.layout.degrees.world_size, cost

        for p in found:
            beaten = any(
                point(q) != point(p)
                and all(a <= b for a, b in zip(point(q), point(p), strict=True))
                for q in found
            )
            assert p.pareto is not beaten
        assert any(p.pareto for p in found)


def test_stages_of_unlike_devices_may_have_a_tp_of_their_own() -> None:
    fast = toy_device(0.5, "fast", memory_bandwidth_bytes_per_second=2e10)
    slow = toy_device(0.5, "slow")
    outcome = toy_planner(cluster=toy_cluster(slow, fast, fast)).search(Wanted())
    own = [p for p in outcome.plans if p.layout.degrees.stage_tp is not None]
    assert [(p.layout.degrees.stage_tp, len(p.layout.stages[0].layers)) for p in own] == [
        ((1, 2), 2)
    ]
    again = toy_planner(cluster=toy_cluster(slow, fast, fast)).search(Wanted(world_size=3))
    assert own[0].layout in [p.layout for p in again.plans]


def test_ranks_that_would_need_another_order_are_told_so() -> None:
    fast = toy_device(0.5, "fast", memory_bandwidth_bytes_per_second=2e10)
    slow = toy_device(0.5, "slow")
    outcome = toy_planner(cluster=toy_cluster(fast, fast, slow)).search(Wanted())
    (refused,) = [r for r in outcome.rejected if "in this order" in r.reason]
    assert "devices 2, 0, 1 of the cluster" in refused.reason
    assert "use stage_tp=[1,2] dp=1 stages=[2,6]" in refused.suggestion
