"""GET /v1/parallel/plan and /v1/parallel/report: what was planned, and what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from parallel.report.report import build_report, sum_counts, sum_steps
from parallel.server.service import Service

Json = dict[str, Any]


def report_routes(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/parallel/plan", response_model=None)
    async def plan() -> Json:
        return service.served.plan

    @routes.get("/v1/parallel/report", response_model=None)
    async def report() -> Json:
        return {
            **merge_reports(await service.reports()),
            "restart": service.restart,
            "provenance": service.settings.provenance,
        }

    return routes


def merge_reports(reports: Sequence[Json]) -> Json:
    """One report of all replicas: each rank as the replica that has it measured it."""
    first = reports[0]
    if len(reports) == 1:
        return first
    measured = [
        {
            "rank": rank["rank"],
            "measured_bytes": {c: v["measured"] for c, v in rank["memory_bytes"].items()},
            "bytes_read": rank["bytes_read"],
            "peak_rss_bytes": rank["peak_rss_bytes"],
            "memory_timeline": [r for r in report["memory_timeline"] if r["rank"] == rank["rank"]],
            "instrument": _of_rank(report["instrument"]["ranks"], rank["rank"]),
        }
        for report in reports
        for rank in report["ranks"]
        if rank["bytes_read"] is not None
    ]
    collectives = [row for report in reports for row in report["collectives"]]
    steps = sum_steps(report["steps"] for report in reports)
    merged = build_report(first["plan"], measured, collectives, steps)
    counts = sum_counts(report["scheduler"] for report in reports)
    return {**merged, "saved": first["saved"], "scheduler": counts}


def _of_rank(costs: Sequence[Json], rank: int) -> Json | None:
    return next(
        ({k: v for k, v in c.items() if k != "rank"} for c in costs if c["rank"] == rank), None
    )
