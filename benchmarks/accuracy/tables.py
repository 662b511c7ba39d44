"""The planner's errors as tables."""

from __future__ import annotations

from typing import Any

from parallel.report.render import make_console, make_table, write_heading, write_line, write_table

Json = dict[str, Any]


def show(result: Json, held_out: bool = False) -> None:
    """`held_out`: errors are those of the half that nothing was fitted to."""
    console, half = make_console(), ", rows kept back (odd lines)" if held_out else ""
    of_fits = ", half kept back from the fit" if held_out else ""
    if "serving" in result:
        serving = result["serving"]
        table = make_table(
            "serving runs|rows|next token: median|mean|90 %|first token: median|mean|90 %", left=1
        )
        _serving_row(table, "all", serving)
        for group in ("by_model", "by_gpu", "by_engine", "by_weights"):
            table.add_section()
            for name, part in serving[group].items():
                _serving_row(table, name, part)
        what = "Time per output token and to the first, predicted against measured"
        write_heading(console, what + half)
        write_table(console, table)
        _skipped(serving["skipped"], console)
    for name, groups in (("collectives", ("by_gpu", "by_library")), ("gemm", ("by_gpu",))):
        if name not in result:
            continue
        part = result[name]
        table = make_table(f"{name}|rows|median|mean|90 %", left=1)
        _row(table, "all", part)
        for group in groups:
            table.add_section()
            for member, errors in part[group].items():
                _row(table, member, errors)
        write_heading(console, f"{name}: seconds predicted against measured{of_fits}")
        write_table(console, table)
        _skipped(part["skipped"], console)


def _serving_row(table: Any, name: str, part: Json) -> None:
    figures = [_percent(part[key].get(f)) for key in ("tpot", "ttft") for f in _FIGURES]
    table.add_row(name, str(part["rows"]), *figures)


def _row(table: Any, name: str, part: Json) -> None:
    table.add_row(name, str(part["rows"]), *(_percent(part.get(f)) for f in _FIGURES))


_FIGURES = ("median", "mean", "p90")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _skipped(skipped: list[Json], console: Any) -> None:
    reasons: dict[str, int] = {}
    for entry in skipped:
        reasons[entry["reason"]] = reasons.get(entry["reason"], 0) + 1
    for reason, count in reasons.items():
        write_line(console, f"{count} rows left out: {reason}")
