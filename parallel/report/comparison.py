"""Measured layouts of a sweep side by side: one typed result of many trade-off reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from parallel.report.view import known, short_name

Json = Mapping[str, Any]
_SHOWN_ALWAYS = ("tp", "pp", "dp", "stage_tp")


@dataclass(frozen=True)
class Entry:
    """A measured point. `user_rate` is tokens per second that one client sees, `device_rate` of all
    clients for each device; `saved_bytes` is the least that a rank holds less than the baseline's
    fullest (without a baseline: than the fullest of the points on fewest ranks), `added_ms` what
    communication and imbalance take of each output token. `pareto`: no other point is as good in
    both rates, and better in one."""

    name: str
    layout: str
    ranks: int
    tokens_per_second: float
    predicted_tokens_per_second: float
    ttft_ms: float
    tpot_ms: float
    user_rate: float
    device_rate: float
    rank_bytes: int
    saved_bytes: int
    added_ms: float
    pareto: bool = False


@dataclass(frozen=True)
class Left:
    """A point without a measurement: `state` is 'refused' or 'failed'."""

    name: str
    state: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Best throughput first; what wasn't measured apart. `model`, `cluster` and `workload` are
    those of the first point."""

    model: str
    cluster: str
    workload: Json
    entries: tuple[Entry, ...]
    left: tuple[Left, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "workload": dict(self.workload)}


def compare_results(points: Sequence[Json]) -> Comparison:
    """`points` have `overrides`, `state`, `reason` and, where measured, a trade-off report's JSON
    as `result`."""
    results = [point["result"] for point in points if point["result"] is not None]
    named = list(zip(point_names(points), points, strict=True))
    reference_bytes = _reference_bytes(results)
    entries = [
        measured_entry(name, point["result"], reference_bytes)
        for name, point in named
        if point["result"] is not None
    ]
    left = [
        Left(name, point["state"], point["reason"])
        for name, point in named
        if point["result"] is None
    ]
    first = results[0] if results else None
    return Comparison(
        model=first["layout"]["plan"]["model"] if first else "",
        cluster=first["layout"]["plan"]["cluster"] if first else "",
        workload=first["workload"] if first else {},
        entries=tuple(sorted(_marked(entries), key=lambda e: -e.tokens_per_second)),
        left=tuple(left),
    )


def point_names(points: Sequence[Json]) -> list[str]:
    """Of each point the overrides that tell it from the others, and its degrees."""
    common = _common(points)
    return [_name(point["overrides"], common) for point in points]


def _common(points: Sequence[Json]) -> set[str]:
    """Overrides that all points share: they tell none apart."""
    sets = [set(point["overrides"]) for point in points]
    shared = set.intersection(*sets) if len(sets) > 1 else set()
    return {o for o in shared if o.split("=")[0].lstrip("+") not in _SHOWN_ALWAYS}


def _name(overrides: Sequence[str], common: set[str]) -> str:
    return " ".join(o.lstrip("+") for o in overrides if o not in common) or "as configured"


def _reference_bytes(results: Sequence[Json]) -> int:
    fewest = min((r["layout"]["plan"]["world_size"] for r in results), default=0)
    alike = [r for r in results if r["layout"]["plan"]["world_size"] == fewest]
    return max((_rank_bytes(r) for r in alike), default=0)


def _rank_bytes(result: Json) -> int:
    ranks = result["layout"]["report"]["ranks"]
    return max(int(known(rank["memory_bytes"]["peak_tensors"])) for rank in ranks)


def measured_entry(name: str, result: Json, reference_bytes: int | None = None) -> Entry:
    """The figures of a trade-off report's JSON; one without a baseline saves against
    `reference_bytes`, or nothing."""
    layout = result["layout"]
    plan, decode = layout["plan"], layout["phases"].get("decode")
    added = 0.0
    if decode is not None:
        added = sum(known(decode[k]) or 0.0 for k in ("communication_ms", "imbalance_ms"))
    rate, tpot = known(layout["tokens_per_second"]), known(layout["tpot_ms"])
    rank_bytes = _rank_bytes(result)
    saved = 0 if reference_bytes is None else reference_bytes - rank_bytes
    return Entry(
        name=name,
        layout=short_name(plan),
        ranks=plan["world_size"],
        tokens_per_second=rate,
        predicted_tokens_per_second=layout["tokens_per_second"]["predicted"],
        ttft_ms=known(layout["ttft_ms"]),
        tpot_ms=tpot,
        user_rate=1e3 / tpot if tpot else 0.0,
        device_rate=rate / plan["world_size"],
        rank_bytes=rank_bytes,
        saved_bytes=min((known(s["bytes"]["total"]) for s in result["saved"]), default=saved),
        added_ms=added,
    )


def _marked(entries: Sequence[Entry]) -> list[Entry]:
    return [replace(e, pareto=not any(_beats(other, e) for other in entries)) for e in entries]


def _beats(a: Entry, b: Entry) -> bool:
    no_worse = a.user_rate >= b.user_rate and a.device_rate >= b.device_rate
    return no_worse and (a.user_rate > b.user_rate or a.device_rate > b.device_rate)
