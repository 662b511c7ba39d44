"""What a layout saves and costs against a baseline, predicted beside measured: one typed result.

It is made from two sides: a plan with its report and what its ranks counted, and the baseline, of
which the plan may be all there is. Tables, pages and pictures are made from its JSON form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parallel.report.figure import Figure, scaled
from parallel.report.report import CAUSES
from parallel.report.sides import Side
from parallel.report.verdict import Candidate, Verdict, decide

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Saved:
    """Bytes that a rank holds less than the baseline's fullest rank, by cause. Of the cache, what
    that one would hold for as many tokens."""

    rank: int
    causes: Mapping[str, Figure]

    @property
    def total(self) -> Figure:
        return Figure(
            sum(f.predicted or 0 for f in self.causes.values()),
            None
            if any(self.causes[c].measured is None for c in ("weights", "kv_cache"))
            else sum(f.measured or 0 for f in self.causes.values()),
        )

    def to_json(self) -> dict[str, Any]:
        causes = {cause: figure.to_json() for cause, figure in self.causes.items()}
        return {"rank": self.rank, "bytes": {**causes, "total": self.total.to_json()}}


@dataclass(frozen=True)
class TradeOff:
    layout: Side
    baseline: Side | None
    baseline_reason: str
    saved: tuple[Saved, ...]
    speed_up: Figure | None
    verdict: Verdict
    candidates: tuple[Candidate, ...]
    workload: Json
    environment: Json

    def to_json(self) -> dict[str, Any]:
        """The contract's form (docs/contract.md)."""
        return {
            "workload": dict(self.workload),
            "layout": self.layout.to_json(),
            "baseline": None if self.baseline is None else self.baseline.to_json(),
            "baseline_reason": self.baseline_reason,
            "saved": [entry.to_json() for entry in self.saved],
            "speed_up": None if self.speed_up is None else self.speed_up.to_json(),
            "verdict": self.verdict.to_json(),
            "candidates": [candidate.to_json() for candidate in self.candidates],
            "environment": dict(self.environment),
        }


def trade_off(
    layout: Side,
    baseline: Side | None,
    baseline_reason: str,
    candidates: Sequence[Candidate],
    objective: str,
    workload: Json,
    environment: Json,
) -> TradeOff:
    """`candidates` are all layouts that fit, as the planner ranks them."""
    saved: tuple[Saved, ...] = ()
    speed_up = None
    if baseline is not None:
        alike = layout if baseline.report is not None else layout.as_planned()
        saved = tuple(_saved(alike, baseline, rank["rank"]) for rank in layout.plan["ranks"])
        speed_up = _speed(alike).over(_speed(baseline))
    verdict = decide(
        _timed(layout), None if baseline is None else _timed(baseline), candidates, objective
    )
    return TradeOff(
        layout,
        baseline,
        baseline_reason,
        saved,
        speed_up,
        verdict,
        tuple(candidates),
        workload,
        environment,
    )


def _timed(side: Side) -> Candidate:
    return Candidate.of(side.plan).timed(
        side.ttft_ms.measured, side.tpot_ms.measured, side.tokens_per_second.measured
    )


def _speed(side: Side) -> Figure:
    """Tokens per second; where it wasn't run, of the plan's requests."""
    measured = side.tokens_per_second
    return measured if side.report else Figure(side.plan["tokens_per_second"], measured.measured)


def _saved(layout: Side, baseline: Side, rank: int) -> Saved:
    return Saved(
        rank,
        {
            cause: _whole(layout, baseline, cause).minus(layout.memory(rank, cause))
            for cause in CAUSES
            if cause not in ("peak_tensors", "total")
        },
    )


def _whole(layout: Side, baseline: Side, cause: str) -> Figure:
    """What the baseline's fullest rank holds of a cause."""
    ranks = [baseline.memory(r["rank"], cause) for r in baseline.plan["ranks"]]
    known = [f.measured for f in ranks if f.measured is not None]
    most = Figure(
        max(f.predicted or 0 for f in ranks), max(known) if len(known) == len(ranks) else None
    )
    if cause != "kv_cache":
        return most
    tokens = layout.plan["kv_cache_tokens"], baseline.plan["kv_cache_tokens"]
    return scaled(most, *tokens)
