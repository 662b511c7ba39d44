"""One side of a comparison: a layout's plan, what its run reported, and where its steps' time
went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from parallel.report.figure import Figure, scaled
from parallel.report.report import PHASES, layout_name
from parallel.report.step_costs import StepCosts, step_costs

Json = Mapping[str, Any]
_STEP_FIGURES = (*(f.name for f in fields(StepCosts)), "without_communication")


@dataclass(frozen=True)
class PhaseCosts:
    """Milliseconds of a mean step of one phase, by cause. `tokens` and `rows` (tokens sampled) are
    those of the step; `bytes` the rank that sends most has sent."""

    steps: int
    tokens: float
    rows: float
    step: Figure
    without_communication: Figure
    communication: Figure
    imbalance: Figure
    compute: Figure
    host: Figure
    pipeline: Figure
    sent_bytes: float | None
    ranks: tuple[tuple[int, int, float], ...]
    """Of each rank its number, how many steps it ran alone, and their mean."""

    def to_json(self) -> dict[str, Any]:
        named = {
            f"{f.name}_ms": getattr(self, f.name).to_json()
            for f in fields(self)
            if isinstance(getattr(self, f.name), Figure)
        }
        per_token = {
            name: scaled(getattr(self, name), 1 / self.tokens).to_json()
            for name in ("communication", "imbalance")
        }
        return {
            "steps": self.steps,
            "tokens_per_step": self.tokens,
            "rows_per_step": self.rows,
            **named,
            "ms_per_token": per_token,
            "sent_bytes_per_step": self.sent_bytes,
            "ranks": [{"rank": r, "steps": n, "compute_ms": ms} for r, n, ms in self.ranks],
        }


@dataclass(frozen=True)
class Side:
    """One layout: its plan, its report when it was run, and how fast it was."""

    plan: Json
    report: Json | None
    ttft_ms: Figure
    tpot_ms: Figure
    tokens_per_second: Figure
    phases: Mapping[str, PhaseCosts]

    @property
    def name(self) -> str:
        return layout_name(self.plan)

    def memory(self, rank: int, cause: str) -> Figure:
        """Where it was run, both of the same steps."""
        if self.report is None:
            return Figure(self.plan["ranks"][rank]["memory_bytes"][cause])
        found = self.report["ranks"][rank]["memory_bytes"][cause]
        return Figure(found["predicted"], found["measured"])

    def as_planned(self) -> Side:
        return replace(self, report=None)

    def to_json(self) -> dict[str, Any]:
        return {
            "plan": dict(self.plan),
            "report": None if self.report is None else dict(self.report),
            "ttft_ms": self.ttft_ms.to_json(),
            "tpot_ms": self.tpot_ms.to_json(),
            "tokens_per_second": self.tokens_per_second.to_json(),
            "phases": {phase: costs.to_json() for phase, costs in self.phases.items()},
        }


def planned_side(plan: Json) -> Side:
    """A layout that wasn't run."""
    ttft, tpot, speed = (Figure(plan[k]) for k in ("ttft_ms", "tpot_ms", "tokens_per_second"))
    return Side(plan, None, ttft, tpot, speed, {p: _planned_phase(plan[p]) for p in PHASES})


def _planned_phase(step: Json) -> PhaseCosts:
    unknown = Figure(None)
    moving, uneven = step["communication_seconds"], step["imbalance_seconds"]
    return PhaseCosts(
        steps=0,
        tokens=step["tokens"],
        rows=step["tokens"],
        step=Figure(step["seconds"] * 1e3),
        without_communication=Figure((step["seconds"] - moving - uneven) * 1e3),
        communication=Figure(moving * 1e3),
        imbalance=Figure(uneven * 1e3),
        compute=unknown,
        host=unknown,
        pipeline=unknown,
        sent_bytes=None,
        ranks=(),
    )


def measured_side(found: Json) -> Side:
    """From `{"workload", "report", "ranks"}`, what runtime/measuring.py brings back."""
    report, entries = found["report"], found["ranks"]
    plan = report["plan"]
    leaders = [e["leader"] for e in entries if e["leader"] is not None]
    here = -(-found["workload"]["concurrency"] // plan["dp"])
    share = found["workload"]["concurrency"] / here

    def mean(key: str, times: float) -> Figure:
        """Of the replicas; what is predicted here is of the same requests."""
        predicted, measured = (
            times * sum(leader[kind][key] for leader in leaders) / len(leaders)
            for kind in ("predicted", "requests")
        )
        return Figure(predicted, measured)

    phases = {phase: costs for phase in PHASES if (costs := _phase(found, phase)) is not None}
    return Side(
        plan,
        report,
        mean("ttft_seconds", 1e3),
        mean("tpot_seconds", 1e3),
        mean("tokens_per_second", share),
        phases,
    )


def _phase(found: Json, phase: str) -> PhaseCosts | None:
    entries, report = found["ranks"], found["report"]
    costs = step_costs(entries, phase)
    if costs is None:
        return None
    led = [e["leader"]["phases"][phase] for e in entries if e["leader"] is not None]
    steps = sum(p["steps"] for p in led)

    def predicted(key: str) -> float:
        return float(sum(p["predicted"][key] for p in led) / steps)

    whole, moving = predicted("seconds"), predicted("communication_seconds")
    uneven = predicted("imbalance_seconds")
    foretold = {
        "step": whole,
        "communication": moving,
        "imbalance": uneven,
        "without_communication": whole - moving - uneven,
    }

    def figure(name: str) -> Figure:
        known = foretold.get(name)
        return scaled(Figure(known, getattr(costs, name)), 1e3)

    alone = [(e["rank"], e["muted"][phase]) for e in entries if phase in e["muted"]]
    return PhaseCosts(
        steps=steps,
        tokens=sum(p["tokens"] for p in led) / steps,
        rows=sum(p["rows"] for p in led) / steps,
        **{name: figure(name) for name in _STEP_FIGURES},
        sent_bytes=report["communication"].get(phase, {}).get("bytes_per_step"),
        ranks=tuple((r, m["steps"], m["seconds"] / m["steps"] * 1e3) for r, m in alone),
    )
