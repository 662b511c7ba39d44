"""What a measured layout is compared with: the baseline, and all layouts that fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from launch.entry import under_torchrun
from launch.planning import search
from launch.schema import MeasureCommand, SloKeys
from parallel.hardware.limits import usable_cores
from parallel.planner.plan import Plan
from parallel.report.sides import measured_side, planned_side
from parallel.report.trade_off import TradeOff, trade_off
from parallel.report.verdict import Candidate

Json = dict[str, Any]
_FREED = ("tp=null", "pp=null", "stage_tp=null", "stages=null", "heads=auto")


@dataclass(frozen=True)
class Baseline:
    """`found` is what its run counted, where it was run."""

    plan: Plan
    reason: str
    found: Json | None = None

    @property
    def measurable(self) -> bool:
        """Under torchrun no other ranks can be started."""
        return not under_torchrun()

    @property
    def overrides(self) -> tuple[str, ...]:
        return (*_FREED, *str(self.plan.layout.degrees).split())


def _freed(settings: MeasureCommand) -> MeasureCommand:
    """The layout left to the planner."""
    return replace(settings, tp=None, pp=None, dp=None, stage_tp=None, stages=None, heads="auto")


def choose_baseline(settings: MeasureCommand, plan: Plan) -> Baseline | None:
    """One rank, or the smallest layout of one replica that fits; None where that is `plan`."""
    free = replace(_freed(settings), slo=SloKeys())
    plans = search(free, plan.layout.spec, None).plans
    fitting = [p for p in plans if p.layout.degrees.dp == 1 and p.formats == plan.formats]
    if not fitting:
        return None
    smallest = min(fitting, key=lambda p: p.layout.degrees.world_size)
    degrees = smallest.layout.degrees
    if degrees == plan.layout.degrees:
        return None
    if degrees.world_size == 1:
        reason = "one rank"
    else:
        reason = "the smallest layout that fits: one rank doesn't"
    if under_torchrun():
        reason += "; predicted alone, since torchrun started the ranks of the layout"
    return Baseline(smallest, reason)


def compare(
    settings: MeasureCommand, plan: Plan, found: Json, baseline: Baseline | None
) -> TradeOff:
    others = [
        p
        for p in search(_freed(settings), plan.layout.spec, None).plans
        if p.formats == plan.formats
    ]
    if baseline is None:
        side, reason = None, "none was asked for, or the layout is the smallest that fits"
    else:
        reason = baseline.reason
        plan_json = baseline.plan.to_json()
        side = planned_side(plan_json) if baseline.found is None else measured_side(baseline.found)
    return trade_off(
        measured_side(found),
        side,
        reason,
        [Candidate.of(p.to_json()) for p in others],
        settings.objective.value,
        found["workload"],
        _environment(found),
    )


def _environment(found: Json) -> Json:
    return {
        "device": found["device"],
        "axes": found["axes"],
        "cores": usable_cores(),
        "load_average_before": found["load_average"],
    }
