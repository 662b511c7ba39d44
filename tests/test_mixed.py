"""Models on unlike devices: what a layer costs there, where stages are cut, who is which rank."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.architecture.spec import ModelSpec
from parallel.hardware.facts import Cluster
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.formats import choose_formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.memory import kv_bytes_per_token, weight_bytes
from parallel.planner.mixed import mixed_layouts
from parallel.planner.plan import make_plan
from parallel.planner.search import Wanted
from parallel.planner.stage_costs import ModelCosts, only, served_work
from parallel.planner.stage_problem import NoStaging
from parallel.planner.timing import StepModel
from parallel.planner.unlike import Cutting
from parallel.planner.work import StepWork
from tests.specs import BIG, specs, toy_cluster, toy_device, toy_planner

LIMITS = EngineLimits(step_tokens=128, requests=8)
LOAD = Workload(input_tokens=100, output_tokens=200, concurrency=4)
SLOW = toy_device(8.0, "slow")
FAST = toy_device(
    8.0,
    "fast",
    memory_bandwidth_bytes_per_second=4e10,
    flops_per_second={"fp32": 4e12, "bf16": 8e12},
)


def cutting(cluster: Cluster, spec: ModelSpec = BIG, workload: Workload = LOAD) -> Cutting:
    return Cutting(spec, cluster, choose_formats(spec), LIMITS, workload, Budget(share=1.0))


def every_cut(layers: int, pp: int) -> list[tuple[int, ...]]:
    return [
        tuple(b - a for a, b in pairwise((0, *inner, layers)))
        for inner in combinations(range(1, layers), pp - 1)
    ]


@given(specs(), st.integers(1, 3), st.integers(0, 50))
def test_bytes_of_the_layers_are_those_of_a_stage(spec: ModelSpec, tp: int, tokens: int) -> None:
    heads = min(b.attention.heads for b in spec.blocks)
    tp = min(tp, heads)
    formats = choose_formats(spec)
    costs, layout = ModelCosts(spec, formats), Layout.make(spec, Degrees(tp=tp))
    total = sum(costs.item_bytes(tp, tokens)) - costs.shared_bytes(tp)
    held = [
        weight_bytes(layout, r, formats) + tokens * kv_bytes_per_token(layout, r, formats)
        for r in range(tp)
    ]
    assert total >= max(held)
    if tp == 1:
        assert total == held[0]


@pytest.mark.parametrize("work", [StepWork.decode(4, 800), StepWork.prompt(100)])
def test_seconds_of_the_layers_are_those_of_a_step(work: StepWork) -> None:
    cluster, formats = toy_cluster(SLOW, FAST, FAST), choose_formats(BIG)
    for ranks in ((0,), (1, 2)):
        part = only(cluster, ranks)
        found = ModelCosts(BIG, formats).seconds(cluster, ranks, [(work, 1.0)])
        layout = Layout.make(BIG, Degrees(tp=len(ranks)))
        step = StepModel(layout, part, formats).step(work)
        # The sum of the embedding's parts is all that is left out.
        summed = work.tokens * BIG.hidden * formats.compute.bytes
        left = part.collective_seconds("all_reduce", summed, range(len(ranks)))
        assert sum(found) + left == pytest.approx(step.seconds)


@pytest.mark.parametrize("types", [(FAST, SLOW), (SLOW, FAST), (SLOW, FAST, SLOW)])
def test_no_other_cut_has_a_faster_slowest_stage(types: tuple[object, ...]) -> None:
    cluster = toy_cluster(*types)  # type: ignore[arg-type]
    facts, degrees = cutting(cluster), Degrees(pp=len(types))
    even, *others = facts.unlike_cuts(degrees)
    work = served_work(LOAD, LIMITS, 1, degrees.pp)

    def slowest(cut: tuple[int, ...]) -> float:
        model = StepModel(Layout.make(BIG, degrees, cut), cluster, facts.formats)
        return sum(weight * model.step(w).slowest_seconds for w, weight in work)

    def through(cut: tuple[int, ...]) -> float:
        model = StepModel(Layout.make(BIG, degrees, cut), cluster, facts.formats)
        return sum(weight * model.step(w).seconds for w, weight in work)

    cuts = every_cut(BIG.layers, degrees.pp)
    assert slowest(even) <= min(map(slowest, cuts)) * 1.001
    assert through((others or [even])[0]) <= min(map(through, cuts)) * 1.001


def test_the_planner_cuts_by_what_devices_are() -> None:
    cluster = toy_cluster(FAST, SLOW)
    planner = toy_planner(cluster=cluster, workload=LOAD)
    chosen = planner.plan(Degrees(pp=2), Wanted())
    fast, slow = (len(s.layers) for s in chosen.layout.stages)
    assert fast > slow
    by_weights = tuple(len(s.layers) for s in Layout.make(BIG, Degrees(pp=2)).stages)
    assert chosen.tokens_per_second > 1.2 * (
        planner.plan(Degrees(pp=2), Wanted(stages=by_weights)).tokens_per_second
    )
    given_cut = planner.plan(Degrees(pp=2), Wanted(stages=(1, 7)))
    assert [len(s.layers) for s in given_cut.layout.stages] == [1, 7]


def test_a_small_device_gets_what_it_holds() -> None:
    """The fast one would take most layers if it had the room."""
    small = replace(FAST, memory_bytes=SLOW.memory_bytes // 32)
    planner = toy_planner(cluster=toy_cluster(small, SLOW), workload=LOAD)
    plan = planner.plan(Degrees(pp=2), Wanted())
    assert all(m.total <= m.budget for m in plan.memory)
    free = toy_planner(cluster=toy_cluster(FAST, SLOW), workload=LOAD).plan(Degrees(pp=2), Wanted())
    assert len(plan.layout.stages[0].layers) < 4 < len(free.layout.stages[0].layers)


def test_alike_devices_are_cut_by_weights() -> None:
    assert cutting(toy_cluster(SLOW, SLOW)).unlike_cuts(Degrees(pp=2)) == ()
    # Each stage has one of both.
    assert cutting(toy_cluster(SLOW, FAST, SLOW, FAST)).unlike_cuts(Degrees(tp=2, pp=2)) == ()


def test_layouts_of_the_searchs_choice() -> None:
    cluster = toy_cluster(FAST, FAST, SLOW, SLOW, SLOW)
    facts = cutting(cluster, workload=replace(LOAD, concurrency=8))
    found = mixed_layouts(facts)
    assert len({(x.stages, x.devices) for x in found}) == len(found) > 1
    for layout in found:
        assert sum(layout.stages) == BIG.layers
        assert len(layout.devices) == sum(layout.stage_tp) == len(set(layout.devices))
        assert layout.staging.counts == layout.stages
        if not layout.in_order:
            continue
        made = Layout.make(BIG, layout.degrees, layout.stages)
        plan = make_plan(made, cluster, facts.formats, LIMITS, facts.workload, facts.budget)
        assert all(m.total <= m.budget for m in plan.memory)
    # The quickest way through is the two fast devices together.
    assert any(x.devices == (0, 1) and x.stage_tp == (2,) for x in found)


def test_a_model_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(NoStaging) as caught:
        mixed_layouts(cutting(toy_cluster(toy_device(0.01), toy_device(0.02, "other"))))
    assert caught.value.kind == "item"
