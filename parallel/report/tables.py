"""Plans and reports as tables, from their JSON forms.

They fit 100 columns, and read the same in a file or a pipe.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from parallel.report.render import (
    make_table,
    ranges,
    write_heading,
    write_line,
    write_more,
    write_table,
)
from parallel.report.report import (
    PHASES,
    Json,
    layout_name,
    relative_error,
    shown_causes,
    sum_collectives,
    summary_lines,
)
from parallel.units import format_bytes, format_count, format_seconds

_PLANS_SHOWN = 12
_REJECTED_SHOWN = 12
_RANKS_SHOWN = 8
_COLLECTIVES_SHOWN = 24
_SPLITS = ("exposed_seconds", "transfer_seconds", "wait_seconds", "hidden_seconds")
_LEGEND = "~ is an estimate, the others are exact"
_TITLES = {
    "kv_cache": "KV cache",
    "activations": "~activations",
    "communication": "~communic.",
    "runtime": "~runtime",
    "peak_tensors": "~tensors' peak",
    "total": "~total",
}


def plan_tables(plans: Json, console: Console) -> None:
    """Prints `{"plans": [...], "rejected": [...]}`: layouts, the first one whole, refusals."""
    found, rejected = plans["plans"], plans.get("rejected", [])
    if len(found) > 1:
        _layouts(found, console)
    if plans.get("choice"):
        write_line(console, f"Chosen: {plans['choice']}")
    if found:
        best = found[0]
        write_heading(console, f"Plan: {layout_name(best)}{_on(best)}")
        _plan_memory(best, console)
        _plan_phases(best, console)
    else:
        write_heading(console, "No legal plan")
    if rejected:
        _rejected(rejected, console)


def report_tables(report: Json, console: Console) -> None:
    """Prints a report: memory by rank and cause, steps, collectives, and what it comes to."""
    write_heading(console, f"Report: {layout_name(report['plan'])}, predicted against measured")
    _report_memory(report["ranks"], console)
    _report_steps(report, console)
    if report["collectives"]:
        _report_collectives(report, console)
    for line in summary_lines(report):
        write_line(console, line)


# ------------------------------------------------------------------------------------ plans


def _layouts(plans: Sequence[Json], console: Console) -> None:
    table = make_table(
        "layout|ranks|per rank|KV requests|first token|next token|tokens/s|$/M tok|Pareto",
        left=1,
    )
    several = len({plan["precision"]["weights"] for plan in plans}) > 1
    for plan in plans[:_PLANS_SHOWN]:
        most = max(rank["memory_bytes"]["total"] for rank in plan["ranks"])
        table.add_row(
            layout_name(plan) + (f" {plan['precision']['weights']}" if several else ""),
            str(plan["world_size"]),
            format_bytes(most),
            format_count(plan["kv_cache_requests"]),
            format_seconds(plan["ttft_ms"] / 1e3),
            format_seconds(plan["tpot_ms"] / 1e3),
            f"{plan['tokens_per_second']:.1f}",
            _dollars(plan["dollars_per_million_tokens"]),
            "yes" if plan["pareto"] else "",
        )
    write_heading(console, f"Layouts that fit: {len(plans)}, best first")
    write_table(console, table)
    write_more(console, len(plans) - _PLANS_SHOWN, "layouts")


def _plan_memory(plan: Json, console: Console) -> None:
    causes = [c for c in shown_causes(plan["ranks"][0]["memory_bytes"]) if c != "peak_tensors"]
    groups: dict[tuple[str, ...], list[int]] = {}
    for rank in plan["ranks"]:
        memory = rank["memory_bytes"]
        figures = (format_bytes(memory[cause]) for cause in (*causes, "budget"))
        groups.setdefault((rank["device"], *figures), []).append(rank["rank"])
    names = {device for device, *_ in groups}
    mixed = len(names) > 1
    if not mixed:
        write_line(console, f"Bytes per rank ({names.pop()}); {_LEGEND}")
    titles = [_title(cause) for cause in (*causes, "budget")]
    table = make_table(
        "|".join(["rank", *["device"] * mixed, *titles]), left=1 + mixed, fold=1, gap=1
    )
    for (device, *figures_), ranks in groups.items():
        table.add_row(ranges(ranks), *[device] * mixed, *figures_)
    write_table(console, table)
    if mixed:
        write_line(console, _LEGEND)
    for stage in plan["stages"] if len(plan["stages"]) > 1 else ():
        first, end = stage["layers"]
        parts = [f"layers {first}-{end - 1}" if end > first else "no layer"]
        parts += [part for part in ("embedding", "head") if stage[part]]
        write_line(console, f"ranks {ranges(stage['ranks'])}: {', '.join(parts)}")
    console.print()


def _plan_phases(plan: Json, console: Console) -> None:
    table = make_table(
        "step|tokens|time|communication|share|per token|sent per token|imbalance|bubble", left=1
    )
    for phase in PHASES:
        step = plan[phase]
        table.add_row(
            phase,
            str(step["tokens"]),
            format_seconds(step["seconds"]),
            format_seconds(step["communication_seconds"]),
            _share(step["communication_seconds"], step["seconds"]),
            format_seconds(step["communication_seconds_per_token"]),
            format_bytes(step["communication_bytes_per_token"]),
            format_seconds(step["imbalance_seconds"]),
            f"{step['bubble']:.0%}",
        )
    write_table(console, table)
    price, energy = plan["dollars_per_million_tokens"], plan["joules_per_token"]
    write_line(
        console,
        f"KV cache {plan['kv_cache_tokens']} tokens, {plan['kv_cache_requests']} requests; first "
        f"token {format_seconds(plan['ttft_ms'] / 1e3)}, next token "
        f"{format_seconds(plan['tpot_ms'] / 1e3)}, {plan['tokens_per_second']:.1f} tokens/s"
        + ("" if price is None else f", {price:.3f} $ per million tokens")
        + ("" if energy is None else f", {energy:.2f} J per token at full power"),
    )


def _rejected(rejected: Sequence[Json], console: Console) -> None:
    """Layouts refused for the same reason and differing in dp alone share a row."""
    groups: dict[tuple[str, str, str], list[Json]] = {}
    for entry in rejected:
        reason = entry["reason"].replace(f" with {layout_name(entry)}", "")
        key = (layout_name(entry, ""), reason, entry["suggestion"])
        groups.setdefault(key, []).append(entry)
    table = make_table("layout|why not|what would do", left=3, fold=2)
    shown = list(groups.items())[:_REJECTED_SHOWN]
    for (_, reason, suggestion), alike in shown:
        name = layout_name(alike[0], ranges([entry["dp"] for entry in alike]))
        table.add_row(Text(name), Text(reason), Text(suggestion or "-"))
    write_heading(console, f"Rejected: {len(rejected)}")
    write_table(console, table)
    write_more(console, len(rejected) - sum(len(alike) for _, alike in shown), "rejected layouts")


# ----------------------------------------------------------------------------------- report


def _report_memory(ranks: Sequence[Json], console: Console) -> None:
    table = make_table("rank|memory|predicted|measured|difference|error", left=2)
    for rank in ranks[:_RANKS_SHOWN]:
        name = str(rank["rank"])
        if all(figures["measured"] is None for figures in rank["memory_bytes"].values()):
            table.add_row(name, "not measured", "-", "-", "-", "")
            continue
        for cause, figures in rank["memory_bytes"].items():
            predicted, measured = figures["predicted"], figures["measured"]
            table.add_row(
                name, _title(cause), format_bytes(predicted), *_difference(predicted, measured)
            )
            name = ""
        for title, key in (("read from files", "bytes_read"), ("peak RSS", "peak_rss_bytes")):
            if rank[key] is not None:
                table.add_row("", title, "", format_bytes(rank[key]), "", "")
        table.add_section()
    write_table(console, table)
    write_more(console, len(ranks) - _RANKS_SHOWN, "ranks")
    console.print()


def _difference(predicted: int, measured: int | None) -> tuple[str, str, str]:
    if measured is None:
        return "-", "-", ""
    if measured == predicted:
        return format_bytes(measured), "0 B", "exact"
    error = relative_error(predicted, measured)
    gap = measured - predicted
    sign = "+" if gap > 0 else "-"
    return (
        format_bytes(measured),
        sign + format_bytes(abs(gap)),
        "" if error is None else f"{error:+.1%}",
    )


def _report_steps(report: Json, console: Console) -> None:
    if not report["steps"]:
        return
    table = make_table("steps|count|predicted|measured|error|communication|sent per step", left=1)
    for phase, step in report["steps"].items():
        predicted, measured = step.get("predicted_seconds"), step.get("measured_seconds")
        error = relative_error(predicted, measured)
        cost = report["communication"][phase]
        table.add_row(
            phase,
            str(step.get("steps", "-")),
            "-" if predicted is None else format_seconds(predicted),
            "-" if measured is None else format_seconds(measured),
            "-" if error is None else f"{error:+.1%}",
            "-" if cost["share"] is None else f"{cost['share']:.1%}",
            "-" if cost["bytes_per_step"] is None else format_bytes(cost["bytes_per_step"]),
        )
    write_table(console, table)


def _report_collectives(report: Json, console: Console) -> None:
    rows = sum_collectives(report["collectives"])
    for phase in dict.fromkeys((*report["steps"], *(row["phase"] for row in rows))):
        here = [row for row in rows if row["phase"] == phase]
        if not here:
            continue
        seconds = report["steps"].get(phase, {}).get("measured_seconds")
        # Only where there is any: the line is short.
        parts = _SPLITS if any(row["hidden_seconds"] for row in here) else _SPLITS[:-1]
        titles = [part.removesuffix("_seconds").replace("wait", "waiting") for part in parts]
        names = ["axis", "op", "layer", "backend", "calls", "sent", *titles, "of step"]
        table = make_table("|".join(names), left=4, fold=3, gap=1)
        for row in here[:_COLLECTIVES_SHOWN]:
            table.add_row(
                *(row[key] for key in ("axis", "op", "layer", "backend")),
                str(row["calls"]),
                format_bytes(row["bytes"]),
                *("-" if row[p] is None else format_seconds(row[p]) for p in parts),
                _share(row["seconds"], seconds),
            )
        write_heading(console, f"Collectives in {phase}, of the rank that spends most on each")
        write_table(console, table)
        write_more(console, len(here) - _COLLECTIVES_SHOWN, "collectives")
    console.print()


def _on(plan: Json) -> str:
    model, cluster = plan.get("model"), plan.get("cluster")
    return (f", {model}" if model else "") + (f" on {cluster}" if cluster else "")


def _title(cause: str) -> str:
    return _TITLES.get(cause, cause)


def _dollars(price: float | None) -> str:
    return "-" if price is None else f"{price:.3f}"


def _share(part: float, whole: float | None) -> str:
    return f"{part / whole:.1%}" if whole else "-"
