"""A sweep's comparison as tables."""

from __future__ import annotations

from rich.console import Console

from parallel.report.comparison import Comparison
from parallel.report.render import make_table, write_heading, write_line, write_table
from parallel.units import format_bytes


def comparison_tables(found: Comparison, console: Console) -> None:
    """Measured points, best throughput first; then what was refused or failed, with reasons."""
    if found.entries:
        write_heading(console, f"Sweep: {found.model} on {found.cluster}, as measured")
        table = make_table(
            "point|tokens/s|predicted|per user|per device|per token|fullest rank|saved|added",
            left=1,
            fold=1,
            gap=1,
        )
        for e in found.entries:
            table.add_row(
                e.name + (" *" if e.pareto else ""),
                f"{e.tokens_per_second:.1f}",
                f"{e.predicted_tokens_per_second:.1f}",
                f"{e.user_rate:.1f}",
                f"{e.device_rate:.1f}",
                f"{e.tpot_ms:.1f} ms",
                format_bytes(e.rank_bytes),
                format_bytes(e.saved_bytes),
                f"{e.added_ms:.2f} ms",
            )
        write_table(console, table)
        write_line(console, "* no other point has more tokens per second both per user and device")
    if found.left:
        write_heading(console, "Not measured")
        for left in found.left:
            write_line(console, f"{left.name}: {left.state}: {left.reason}")
