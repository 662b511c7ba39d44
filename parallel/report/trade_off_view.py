"""What a page says of a trade-off report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parallel.report.plan_view import plan_facts
from parallel.report.provenance import provenance_facts
from parallel.report.render import ranges
from parallel.report.report import layout_name
from parallel.report.step_costs import steps_run
from parallel.report.view import (
    MEMORY_CAUSES,
    Headline,
    Json,
    PageTable,
    View,
    figure,
    known,
    ms,
    percent,
    plain,
    price,
    share,
    short_name,
    shortened,
    size,
)
from parallel.units import format_bytes

_STEP = {
    "step_ms": "whole",
    "without_communication_ms": "communication taken away",
    "communication_ms": "communication",
    "imbalance_ms": "imbalance",
    "compute_ms": "ranks' own work",
    "host_ms": "engine between steps",
    "pipeline_ms": "waiting for other batches",
}


def trade_off_view(body: Json) -> View:
    layout, baseline, verdict = body["layout"], body["baseline"], body["verdict"]
    plan = layout["plan"]
    against = "no baseline" if baseline is None else short_name(baseline["plan"])
    tables = [_costs(phase, costs) for phase, costs in layout["phases"].items()]
    if body["saved"]:
        tables.append(_saved(body["saved"], against))
    tables += [_speed(body), _candidates(body["candidates"], layout_name(plan))]
    return View(
        title=f"{plan['model']}: {short_name(plan)} against {against}",
        eyebrow=f"Trade-off of sharding on {plan['cluster']}, measured and predicted",
        verdict=f"{verdict['decision'].capitalize()}: {shortened(verdict['use'])}",
        reasons=verdict["reasons"],
        headlines=_trade_off_headlines(body),
        tables=tables,
        facts=[*plan_facts(plan), *_run_facts(body), *provenance_facts(body)],
    )


def _trade_off_headlines(body: Json) -> list[Headline]:
    layout, headlines = body["layout"], []
    if body["saved"]:
        least = min(body["saved"], key=lambda entry: entry["bytes"]["weights"]["predicted"])
        weights = least["bytes"]["weights"]
        note = f"and {size(known(least['bytes']['kv_cache']))} of cache"
        headlines.append(Headline(size(known(weights)), "of weights saved on each rank", note))
    decode = layout["phases"].get("decode")
    if decode is not None:
        step = decode["step_ms"]["measured"]
        for key, label in (
            ("communication_ms", "per token for communication"),
            ("imbalance_ms", "per token for imbalance"),
            ("without_communication_ms", "per token with communication taken away"),
        ):
            cost = decode[key]["measured"]
            headlines.append(Headline(ms(cost), label, f"{share(cost, step)} of a decode step"))
    if body["speed_up"] is not None:
        ours, theirs = layout["tokens_per_second"], body["baseline"]["tokens_per_second"]
        note = f"{known(theirs):.1f} to {known(ours):.1f} tokens per second"
        headlines.append(Headline(f"{known(body['speed_up']):.2f} ×", "speed-up", note))
    tpot = layout["tpot_ms"]
    note = f"predicted {ms(tpot['predicted'])}, {percent(tpot['error'])}"
    headlines.append(Headline(ms(tpot["measured"]), "per output token under load", note))
    return headlines


def _costs(phase: str, costs: Json) -> PageTable:
    per_token = costs["ms_per_token"]
    rows = [
        (
            title,
            *figure(costs[key], ms),
            ms(per_token[key[:-3]]["measured"]) if key[:-3] in per_token else "",
        )
        for key, title in _STEP.items()
    ]
    note = f"{steps_run(costs)} on average."
    headers = ("a mean step", "predicted", "measured", "error", "for each token computed")
    return PageTable(f"{phase.capitalize()} steps", note, headers, rows)


def _saved(saved: Sequence[Json], against: str) -> PageTable:
    groups: dict[tuple[tuple[str, ...], ...], list[int]] = {}
    for entry in saved:
        figures = tuple(
            (kind, *(size(entry["bytes"][cause][kind]) for cause in (*MEMORY_CAUSES, "total")))
            for kind in ("predicted", "measured")
        )
        groups.setdefault(figures, []).append(entry["rank"])
    rows = [(ranges(ranks), *row) for figures, ranks in groups.items() for row in figures]
    headers = ("rank", "", *(cause.replace("_", " ") for cause in MEMORY_CAUSES), "total")
    note = f"Less than the fullest rank of {against} holds; of the cache, for as many tokens."
    return PageTable("Bytes saved on each rank", note, headers, rows)


def _speed(body: Json) -> PageTable:
    rows = []
    for key, title, shown in (
        ("ttft_ms", "time to first token", ms),
        ("tpot_ms", "time per output token", ms),
        ("tokens_per_second", "tokens per second", plain),
    ):
        for name in ("layout", "baseline"):
            if body[name] is not None:
                rows.append(
                    (title, layout_name(body[name]["plan"]), *figure(body[name][key], shown))
                )
    headers = ("", "layout", "predicted", "measured", "error")
    return PageTable("Under the workload's load", "", headers, rows)


def _candidates(candidates: Sequence[Json], chosen: str) -> PageTable:
    rows = [
        (
            layout_name(c),
            str(c["world_size"]),
            format_bytes(c["fullest_rank_bytes"]),
            ms(c["ttft_ms"]),
            ms(c["tpot_ms"]),
            f"{c['tokens_per_second']:.1f}",
            price(c["dollars_per_million_tokens"]),
        )
        for c in candidates
    ]
    places = [index for index, row in enumerate(rows) if row[0] == chosen]
    headers = (
        "layout",
        "ranks",
        "fullest rank",
        "first token",
        "next token",
        "tokens/s",
        "$/M tokens",
    )
    note = "All layouts that fit, as predicted, best first."
    return PageTable("Other layouts", note, headers, rows, chosen=places[0] if places else None)


def _run_facts(body: Json) -> list[tuple[str, str]]:
    workload, environment = body["workload"], body["environment"]
    described = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in workload.items())
    facts = [("workload", described), ("baseline", body["baseline_reason"])]
    for name, value in environment.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items())
        elif isinstance(value, list):
            value = "; ".join(map(str, value))
        facts.append((name.replace("_", " "), str(value) or "-"))
    return facts
