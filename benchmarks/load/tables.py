"""Results as tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich.console import Console

from benchmarks.load.measured import Measured, Spread
from benchmarks.load.results import Case, Results
from parallel.report.render import make_table, write_heading, write_line, write_table
from parallel.units import MIB


def print_results(results: Results, console: Console) -> None:
    for case in results.cases:
        _print_case(case, results.bandwidth, console)
    write_line(console, f"\n{results.machine.line()}")


def _print_case(case: Case, bandwidth: float, console: Console) -> None:
    write_heading(
        console,
        f"{case.model}, {case.load} load, {case.clients} clients: "
        f"{case.weight_bytes / MIB:.0f} MiB of weights a step",
    )
    alike, alone = case.load == "decode", case.clients == 1
    columns = "system|tokens/s|first ms|p99|per token ms|p99|peak MiB"
    columns += "|decode tokens/s" if alike else ""
    columns += "|of bandwidth" if alone else ""
    columns += "|communication" if case.communication else ""
    table = make_table(columns, left=1)
    for label, runs in case.runs.items():
        cells = [label, Spread.of([run.tokens_per_second for run in runs]).text(1)]
        cells += _milliseconds(runs)
        cells.append(f"{max(run.memory_bytes for run in runs) / MIB:.0f}")
        if alike:
            cells.append(case.decode_tokens_per_second(label).text(1))
        if alone:
            cells.append(f"{case.share_of_bandwidth(label, bandwidth):.0%}")
        if case.communication:
            share = case.communication.get(label)
            cells.append("–" if share is None else f"{share:.1%}")
        table.add_row(*cells)
    write_table(console, table)
    ratios = make_table("tokens/s|ratio", left=1)
    for (ours, peer), spread in case.ratios().items():
        ratios.add_row(f"{ours} / {peer}", spread.text(2))
    if ratios.row_count:
        write_table(console, ratios)
    for label, reason in case.failures.items():
        write_line(console, f"{label} can't run it: {reason}")


def _milliseconds(runs: Sequence[Measured]) -> list[str]:
    """Medians over the turns."""
    return [
        f"{median(run.first_token_p50_seconds for run in runs) * 1e3:.0f}",
        f"{median(run.first_token_p99_seconds for run in runs) * 1e3:.0f}",
        f"{median(run.token_p50_seconds for run in runs) * 1e3:.1f}",
        f"{median(run.token_p99_seconds for run in runs) * 1e3:.1f}",
    ]
