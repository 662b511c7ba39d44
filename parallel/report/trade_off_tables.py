"""The trade-off report as tables, from its JSON form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from parallel.report.render import (
    make_table,
    ranges,
    write_heading,
    write_line,
    write_more,
    write_table,
)
from parallel.report.report import CAUSES, layout_name
from parallel.report.step_costs import steps_run
from parallel.units import format_bytes, format_seconds

Json = Mapping[str, Any]
_RANKS_SHOWN = 8
_STEP = {
    "step_ms": "step",
    "without_communication_ms": "  communication taken away",
    "compute_ms": "    own work, mean of the ranks",
    "host_ms": "    engine between steps",
    "pipeline_ms": "    waiting for other batches",
    "communication_ms": "  communication",
    "imbalance_ms": "  imbalance, slowest rank less mean",
}


def trade_off_tables(body: Json, console: Console) -> None:
    """Prints the whole of it: memory, savings, steps, speed, and the verdict last."""
    layout, baseline = body["layout"], body["baseline"]
    name = layout_name(layout["plan"])
    write_heading(console, f"Trade-off: {name} against {_against(body)}, predicted and measured")
    _memory(layout, console)
    if baseline is not None:
        _saved(body["saved"], layout_name(baseline["plan"]), console)
    _steps(layout["phases"], console)
    _speed(body, console)
    write_heading(console, f"Verdict: {body['verdict']['decision']} ({body['verdict']['use']})")
    for reason in body["verdict"]["reasons"]:
        write_line(console, reason)


def _against(body: Json) -> str:
    if body["baseline"] is None:
        return "no baseline"
    return f"{layout_name(body['baseline']['plan'])} ({body['baseline_reason']})"


def _memory(side: Json, console: Console) -> None:
    """A row for each kind of rank: those that hold the same, predicted and measured."""
    causes = [cause for cause in CAUSES if cause not in ("peak_tensors", "total")]
    table = make_table("rank||weights|KV cache|activations|communic.|runtime|total|budget", left=2)
    groups: dict[tuple[tuple[str, ...], ...], list[int]] = {}
    planned = {rank["rank"]: rank["memory_bytes"] for rank in side["plan"]["ranks"]}
    for rank in side["report"]["ranks"]:
        memory = rank["memory_bytes"]
        rows = []
        for kind in ("predicted", "measured"):
            figures = [memory[cause][kind] for cause in causes]
            known = None not in figures
            total = format_bytes(sum(figures)) if known else "-"
            budget = format_bytes(planned[rank["rank"]]["budget"]) if kind == "predicted" else ""
            shown = ["-" if f is None else format_bytes(f) for f in figures]
            rows.append((kind, *shown, total, budget))
        groups.setdefault(tuple(rows), []).append(rank["rank"])
    for rows_, ranks in list(groups.items())[:_RANKS_SHOWN]:
        for index, row in enumerate(rows_):
            table.add_row("" if index else ranges(ranks), *row)
    write_table(console, table)
    write_more(console, len(groups) - _RANKS_SHOWN, "kinds of ranks")


def _saved(saved: Sequence[Json], baseline: str, console: Console) -> None:
    causes = [cause for cause in CAUSES if cause not in ("peak_tensors", "total")]
    titles = "|".join(("rank", "", *(c.replace("_", " ") for c in causes), "total"))
    table = make_table(titles, left=2)
    groups: dict[tuple[tuple[str, ...], ...], list[int]] = {}
    for entry in saved:
        rows = tuple(
            (kind, *(_bytes(entry["bytes"][cause][kind]) for cause in (*causes, "total")))
            for kind in ("predicted", "measured")
        )
        groups.setdefault(rows, []).append(entry["rank"])
    for rows_, ranks in list(groups.items())[:_RANKS_SHOWN]:
        for index, row in enumerate(rows_):
            table.add_row("" if index else ranges(ranks), *row)
    write_heading(console, f"Saved on each rank, against the fullest of {baseline}")
    write_table(console, table)


def _steps(phases: Json, console: Console) -> None:
    for phase, costs in phases.items():
        table = make_table("a mean step|predicted|measured|error|per token", left=1)
        for key, title in _STEP.items():
            figure = costs[key]
            if figure["measured"] is None or (key == "pipeline_ms" and not figure["measured"]):
                continue
            table.add_row(
                title, *_row(figure, _ms), _ms(figure["measured"] / costs["tokens_per_step"])
            )
        write_heading(console, f"{phase}: {steps_run(costs)}")
        write_table(console, table)


def _speed(body: Json, console: Console) -> None:
    layout, baseline = body["layout"], body["baseline"]
    table = make_table("|predicted|measured|error|baseline predicted|measured|error", left=1, gap=1)
    for key, title, shown in (
        ("ttft_ms", "time to first token", _ms),
        ("tpot_ms", "time per output token", _ms),
        ("tokens_per_second", "tokens/s", _plain),
    ):
        other = ("-", "-", "") if baseline is None else _row(baseline[key], shown)
        table.add_row(title, *_row(layout[key], shown), *other)
    write_heading(console, "Under the workload's load")
    write_table(console, table)
    speed_up = body["speed_up"]
    if speed_up is not None:
        predicted, measured = speed_up["predicted"], speed_up["measured"]
        found = "not measured" if measured is None else f"measured {measured:.2f}"
        write_line(console, f"speed-up: predicted {predicted:.2f}, {found}")


def _row(figure: Json, shown: Callable[[float | None], str]) -> tuple[str, str, str]:
    error = figure["error"]
    return (
        shown(figure["predicted"]),
        shown(figure["measured"]),
        "" if error is None else f"{error:+.1%}",
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else format_seconds(value / 1e3)


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _bytes(value: float | None) -> str:
    return "-" if value is None else format_bytes(value)
