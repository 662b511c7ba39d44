"""Charts of plans and of trade-off reports, from their JSON forms."""

from __future__ import annotations

from collections.abc import Sequence

from parallel.report.bars import Bar, memory_bars, time_bars
from parallel.report.canvas import Chart
from parallel.report.render import ranges
from parallel.report.report import sum_collectives
from parallel.report.scatter import LayoutPoint, Pair, agreement_chart, pareto_chart
from parallel.report.step_costs import steps_run
from parallel.report.view import MEMORY_CAUSES, Json, short_name

MEMORY = {
    "weights": ("blue", "weights"),
    "kv_cache": ("sky", "KV cache"),
    "activations": ("green", "activations"),
    "communication": ("orange", "communication buffers"),
    "runtime": ("grey", "runtime"),
}
STEP = {
    "compute": ("blue", "ranks' own work"),
    "host": ("grey", "engine between steps"),
    "pipeline": ("sky", "waiting for other batches"),
    "imbalance": ("yellow", "imbalance"),
    "communication": ("orange", "communication"),
}
MOVING = {"moving": ("orange", "moving"), "waiting": ("yellow", "waiting for late peers")}
_PLANS, _RANKS, _KINDS, _NAME = 10, 12, 8, 16
_TITLES = {"prefill": "A prefill step", "decode": "A decode step"}


def plan_charts(body: Json) -> list[Chart]:
    """Of `{"plans", "rejected"}`, the first plan being the one that is chosen."""
    plans = body["plans"]
    if not plans:
        return []
    charts = [_front(plans, short_name(plans[0]))] if len(plans) > 1 else []
    charts.append(_planned_memory(plans[0]))
    for phase in ("decode", "prefill"):
        charts.append(_planned_steps(plans, phase))
    return charts


def trade_off_charts(body: Json) -> list[Chart]:
    layout = body["layout"]
    charts = [_memory(body)]
    charts += [_steps(body, phase) for phase in ("decode", "prefill") if phase in layout["phases"]]
    charts.append(_agreement(layout))
    if layout["report"]["collectives"]:
        charts.append(_communication(layout["report"]))
    if len(body["candidates"]) > 1:
        charts.append(_front(body["candidates"], short_name(layout["plan"])))
    return charts


def _front(plans: Sequence[Json], chosen: str) -> Chart:
    points = [
        LayoutPoint(
            short_name(p),
            p["world_size"],
            p["tpot_ms"],
            p["tokens_per_second"],
            p["dollars_per_million_tokens"],
            p["pareto"],
            short_name(p) == chosen,
        )
        for p in plans
    ]
    title = "Layouts that fit, by latency and throughput, as predicted"
    return pareto_chart("front", title, points)


# ---------------------------------------------------------------------------------- memory


def _planned_memory(plan: Json) -> Chart:
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for rank in plan["ranks"]:
        parts = tuple(rank["memory_bytes"][cause] for cause in MEMORY_CAUSES)
        groups.setdefault((rank["device"], parts), []).append(rank["rank"])
    bars = [
        [Bar(device, dict(zip(MEMORY_CAUSES, parts, strict=True)), heading=_ranks(ranks))]
        for (device, parts), ranks in groups.items()
    ]
    budget = min(rank["memory_bytes"]["budget"] for rank in plan["ranks"])
    title = f"Memory of each rank by cause, {short_name(plan)}"
    note = _shown("Predicted before loading; ranks that hold the same share a bar", bars, _RANKS)
    return memory_bars("memory", title, note, bars[:_RANKS], MEMORY, budget)


def _memory(body: Json) -> Chart:
    layout, baseline = body["layout"], body["baseline"]
    groups = _measured_memory(layout["report"], "")
    if baseline is not None:
        name = short_name(baseline["plan"])
        if baseline["report"] is not None:
            groups += _measured_memory(baseline["report"], name)
        else:
            fullest = max(baseline["plan"]["ranks"], key=lambda r: r["memory_bytes"]["total"])
            parts = {cause: fullest["memory_bytes"][cause] for cause in MEMORY_CAUSES}
            groups.append([Bar("predicted", parts, True, name)])
    budget = min(rank["memory_bytes"]["budget"] for rank in layout["plan"]["ranks"])
    title = f"Memory of each rank by cause, {short_name(layout['plan'])}"
    note = _shown(
        "Pale: predicted before loading. Ranks that hold the same share bars", groups, _RANKS
    )
    return memory_bars("memory", title, note, groups[:_RANKS], MEMORY, budget)


def _measured_memory(report: Json, name: str) -> list[list[Bar]]:
    """Ranks alike in what was predicted; of each kind the one that held most."""
    kinds: dict[tuple[int, ...], list[Json]] = {}
    for rank in report["ranks"]:
        key = tuple(rank["memory_bytes"][cause]["predicted"] for cause in MEMORY_CAUSES)
        kinds.setdefault(key, []).append(rank)
    groups = []
    for key, ranks in kinds.items():
        found = [_held(rank) for rank in ranks]
        heading = name or _ranks([rank["rank"] for rank in ranks])
        groups.append(
            [
                Bar("predicted", dict(zip(MEMORY_CAUSES, key, strict=True)), True, heading),
                Bar("measured", max(found, key=lambda parts: sum(parts.values()))),
            ]
        )
    return groups


def _held(rank: Json) -> dict[str, float]:
    return {cause: rank["memory_bytes"][cause]["measured"] or 0 for cause in MEMORY_CAUSES}


def _ranks(ranks: Sequence[int]) -> str:
    """Their numbers, where these are few."""
    name = f"rank{'s' if len(ranks) > 1 else ''} {ranges(ranks)}"
    return name if len(name) <= _NAME else f"{len(ranks)} like rank {min(ranks)}"


def _shown(note: str, rows: Sequence[object], most: int) -> str:
    return f"{note}." + (
        f" {len(rows) - most} more kinds aren't shown." if len(rows) > most else ""
    )


# ----------------------------------------------------------------------------------- steps


def _planned_steps(plans: Sequence[Json], phase: str) -> Chart:
    """Replicas alike but for their number share a bar."""
    kinds_of: dict[tuple[object, ...], Json] = {}
    for plan in plans:
        kinds_of.setdefault((plan["tp"], plan["pp"], str(plan["stage_tp"])), plan)
    best = list(kinds_of.values())[:_PLANS]
    bars = [[Bar("", _parts(plan[phase]), heading=short_name(plan))] for plan in best]
    kinds = {**STEP, "compute": ("blue", "computing")}
    note = "Predicted; best layouts first, the best dp of each tp and pp."
    return time_bars(f"{phase}-steps", _TITLES[phase], note, bars, kinds)


def _parts(step: Json) -> dict[str, float]:
    moving, uneven = step["communication_seconds"] * 1e3, step["imbalance_seconds"] * 1e3
    compute = step["seconds"] * 1e3 - moving - uneven
    return {"compute": compute, "imbalance": uneven, "communication": moving}


def _steps(body: Json, phase: str) -> Chart:
    layout, baseline = body["layout"], body["baseline"]
    costs = layout["phases"][phase]
    found = {kind: costs[f"{kind}_ms"]["measured"] or 0.0 for kind in STEP}
    gone = {k: v for k, v in found.items() if k not in ("communication", "imbalance")}
    groups = [
        [
            Bar("predicted", _foretold(costs), True, short_name(layout["plan"])),
            Bar("measured", found),
            Bar("no communication", gone),
        ]
    ]
    if baseline is not None and phase in baseline["phases"]:
        other = baseline["phases"][phase]
        group = [Bar("predicted", _foretold(other), True, short_name(baseline["plan"]))]
        if other["step_ms"]["measured"] is not None:
            parts = {kind: other[f"{kind}_ms"]["measured"] or 0.0 for kind in STEP}
            group.append(Bar("measured", parts))
        groups.append(group)
    note = f"Mean of {steps_run(costs)}."
    return time_bars(f"{phase}-steps", _TITLES[phase], note, groups, STEP)


def _foretold(costs: Json) -> dict[str, float]:
    return {
        "compute": costs["without_communication_ms"]["predicted"],
        "imbalance": costs["imbalance_ms"]["predicted"],
        "communication": costs["communication_ms"]["predicted"],
    }


def _communication(report: Json) -> Chart:
    """What the rank that spends most spends on each layer kind's collectives, per step."""
    groups: list[list[Bar]] = []
    for phase, step in report["steps"].items():
        rows = [row for row in sum_collectives(report["collectives"]) if row["phase"] == phase]
        bars = []
        for row in rows[:_KINDS]:
            ms, waited = (
                (row[key] or 0.0) / step["steps"] * 1e3 for key in ("seconds", "wait_seconds")
            )
            label = f"{row['layer']} {row['op'].replace('_', '-')}"
            bars.append(Bar(label, {"moving": ms - waited, "waiting": waited}))
        if bars:
            groups.append([_headed(bars[0], phase), *bars[1:]])
    title = "Communication by layer and phase"
    note = "Per step, of the rank that spends most."
    return time_bars("communication", title, note, groups, MOVING)


def _headed(bar: Bar, heading: str) -> Bar:
    return Bar(bar.label, bar.parts, bar.pale, heading)


# ------------------------------------------------------------------------------- agreement


def _agreement(side: Json) -> Chart:
    named = [("first token", side["ttft_ms"]), ("next token", side["tpot_ms"])]
    for phase, costs in side["phases"].items():
        named.append((f"{phase} step", costs["step_ms"]))
        named.append((f"{phase}, no communication", costs["without_communication_ms"]))
        named.append((f"{phase} communication", costs["communication_ms"]))
    fullest = max(side["report"]["ranks"], key=lambda r: r["memory_bytes"]["total"]["predicted"])
    sizes = [(MEMORY[cause][1], fullest["memory_bytes"][cause]) for cause in MEMORY_CAUSES]
    title = "Predicted against measured"
    return agreement_chart("agreement", title, _pairs(named), _pairs(sizes))


def _pairs(named: Sequence[tuple[str, Json]]) -> list[Pair]:
    """Those that a logarithmic scale can show."""
    return [
        Pair(name, figure["predicted"], figure["measured"])
        for name, figure in named
        if (figure["predicted"] or 0) > 0 and (figure["measured"] or 0) > 0
    ]
