"""A sweep while it runs: its points, their states, and the figures that have come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from parallel.report.comparison import Entry, measured_entry, point_names
from parallel.report.render import make_table
from parallel.units import format_bytes

Json = Mapping[str, Any]
_URGENT = ("running", "failed", "measured", "refused", "waiting")
"""What is shown first where there is no room for all."""


@dataclass(frozen=True)
class PointRow:
    """`seconds` since the point began, or how long it took; `entry` where it was measured."""

    name: str
    state: str
    seconds: float
    reason: str
    entry: Entry | None


def point_rows(points: Sequence[Json]) -> list[PointRow]:
    """`points` have `overrides`, `state`, `reason`, `seconds`, and `result` where measured."""
    return [
        PointRow(
            name,
            point["state"],
            point["seconds"],
            point["reason"],
            measured_entry(name, point["result"]) if point["result"] else None,
        )
        for name, point in zip(point_names(points), points, strict=True)
    ]


def point_line(row: PointRow) -> str:
    """One line for a log."""
    if row.entry is not None:
        e = row.entry
        figures = f"{e.tokens_per_second:.1f} tokens/s, {e.tpot_ms:.1f} ms per token"
        return f"{row.name}: {row.state} in {row.seconds:.0f} s: {figures}"
    return f"{row.name}: {row.state}" + (f": {row.reason}" if row.reason else "")


def sweep_table(rows: Sequence[PointRow], height: int) -> RenderableType:
    """At most `height` lines: how many points are where, and those that matter most."""
    counts = Counter(row.state for row in rows)
    said = ", ".join(f"{counts[state]} {state}" for state in _URGENT if counts[state])
    room = max(1, height - 4)
    kept = {id(row) for row in sorted(rows, key=lambda r: _URGENT.index(r.state))[:room]}
    table = make_table("point|state|seconds|tokens/s|first token|per token|fullest rank", left=2)
    for row in rows:
        if id(row) in kept:
            table.add_row(row.name, row.state, *_figures(row))
    more = len(rows) - len(kept)
    heading = f"{len(rows)} points: {said}" + (f"; {more} of them not shown" if more else "")
    return Group(Text(heading, style="bold", no_wrap=True), table)


def _figures(row: PointRow) -> tuple[str, ...]:
    seconds = f"{row.seconds:.0f}" if row.state != "waiting" else ""
    if row.entry is None:
        return (seconds, "", "", "", "")
    e = row.entry
    return (
        seconds,
        f"{e.tokens_per_second:.1f}",
        f"{e.ttft_ms:.1f} ms",
        f"{e.tpot_ms:.1f} ms",
        format_bytes(e.rank_bytes),
    )
