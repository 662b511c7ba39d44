"""What a page says of plans."""

from __future__ import annotations

from collections.abc import Sequence

from parallel.report.provenance import provenance_facts
from parallel.report.render import ranges
from parallel.report.report import PHASES, layout_name
from parallel.report.view import (
    MEMORY_CAUSES,
    Headline,
    Json,
    PageTable,
    View,
    ms,
    price,
    share,
    short_name,
)
from parallel.units import format_bytes, format_count


def plan_view(body: Json) -> View:
    plans, rejected = body["plans"], body["rejected"]
    tables = [_rejected(rejected)] if rejected else []
    if not plans:
        reasons = [f"{entry['reason']}: {entry['suggestion']}" for entry in rejected[:1]]
        return View("Plan", "Plan", "No layout fits", reasons, [], tables, [])
    best = plans[0]
    choice = body.get("choice", "")
    return View(
        title=f"{best['model']} on {best['cluster']}",
        eyebrow=f"Plan: layouts that fit: {len(plans)}, rejected: {len(rejected)}",
        verdict=short_name(best).capitalize() if best["world_size"] == 1 else short_name(best),
        reasons=[choice] if choice else [],
        headlines=_plan_headlines(best),
        tables=[_layouts(plans), _phases(best), _memory_table(best), *tables],
        facts=[*plan_facts(best), *provenance_facts(body)],
    )


def _plan_headlines(plan: Json) -> list[Headline]:
    fullest = max(plan["ranks"], key=lambda rank: rank["memory_bytes"]["total"])["memory_bytes"]
    room = f"of a budget of {format_bytes(fullest['budget'])}"
    headlines = [
        Headline(f"{plan['tokens_per_second']:.1f}", "tokens per second"),
        Headline(ms(plan["tpot_ms"]), "per output token"),
        Headline(ms(plan["ttft_ms"]), "to the first token"),
        Headline(format_bytes(fullest["total"]), "on the fullest rank", room),
    ]
    price = plan["dollars_per_million_tokens"]
    if price is not None:
        headlines.append(Headline(f"$ {price:.3f}", "per million tokens"))
    return headlines


def _layouts(plans: Sequence[Json]) -> PageTable:
    rows = [
        (
            layout_name(plan),
            str(plan["world_size"]),
            format_bytes(max(rank["memory_bytes"]["total"] for rank in plan["ranks"])),
            format_count(plan["kv_cache_tokens"]),
            ms(plan["ttft_ms"]),
            ms(plan["tpot_ms"]),
            f"{plan['tokens_per_second']:.1f}",
            price(plan["dollars_per_million_tokens"]),
            "●" if plan["pareto"] else "",
        )
        for plan in plans
    ]
    headers = "layout|ranks|fullest rank|KV tokens|first token|next token|tokens/s|$/M tokens|front"
    note = "Best first. The front: no other layout is as good in everything."
    return PageTable("Layouts that fit", note, headers.split("|"), rows, chosen=0)


def _phases(plan: Json) -> PageTable:
    rows = [
        (
            phase,
            ms(step["seconds"] * 1e3),
            ms(step["communication_seconds"] * 1e3),
            share(step["communication_seconds"], step["seconds"]),
            format_bytes(step["communication_bytes"]),
            ms(step["imbalance_seconds"] * 1e3),
            f"{step['bubble']:.0%}",
        )
        for phase, step in ((phase, plan[phase]) for phase in PHASES)
    ]
    headers = "step|time|communication|share|sent by a rank|imbalance|pipeline bubble"
    return PageTable(f"Steps of {layout_name(plan)}", "", headers.split("|"), rows)


def _memory_table(plan: Json) -> PageTable:
    groups: dict[tuple[str, ...], list[int]] = {}
    for rank in plan["ranks"]:
        memory = rank["memory_bytes"]
        figures = (format_bytes(memory[cause]) for cause in (*MEMORY_CAUSES, "total", "budget"))
        groups.setdefault((rank["device"], *figures), []).append(rank["rank"])
    rows = [(ranges(ranks), *figures) for figures, ranks in groups.items()]
    headers = ("rank", "device", *(c.replace("_", " ") for c in MEMORY_CAUSES), "total", "budget")
    note = "Weights and cache are exact, the others estimates."
    return PageTable("Bytes of each rank", note, headers, rows)


def _rejected(rejected: Sequence[Json]) -> PageTable:
    rows = [(layout_name(r), r["reason"], r["suggestion"] or "-") for r in rejected]
    headers = ("layout", "why not", "what would do")
    return PageTable(f"Rejected: {len(rejected)}", "", headers, rows, words=True)


def plan_facts(plan: Json) -> list[tuple[str, str]]:
    precision = plan["precision"]
    facts = [
        ("model", plan["model"]),
        ("cluster", plan["cluster"]),
        ("layout", f"{layout_name(plan)}, {plan['world_size']} ranks, heads: {plan['heads']}"),
        ("precision", ", ".join(f"{name.replace('_', ' ')} {p}" for name, p in precision.items())),
        ("longest sequence", f"{plan['context_tokens']} tokens"),
    ]
    for stage in plan["stages"] if len(plan["stages"]) > 1 else ():
        first, end = stage["layers"]
        parts = [f"layers {first}-{end - 1}" if end > first else "no layer"]
        parts += [part for part in ("embedding", "head") if stage[part]]
        facts.append((f"ranks {ranges(stage['ranks'])}", ", ".join(parts)))
    return facts
