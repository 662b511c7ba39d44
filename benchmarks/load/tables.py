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
    columns = "system|tokens/s|decode tokens/s"
    columns += "|of bandwidth" if case.clients == 1 else ""
    columns += "|communication" if case.communication else ""
    speeds = make_table(columns, left=1)
    times = make_table("system|first ms|p99|token ms|p99|gap ms p99|peak MiB", left=1)
    for label, runs in case.runs.items():
        decode = case.decode_tokens_per_second(label)
        cells = [label, Spread.of([run.tokens_per_second for run in runs]).text(1)]
        cells.append(decode.text(1) if decode else "–")
        if case.clients == 1:
            cells.append(_percent(case.share_of_bandwidth(label, bandwidth)))
        if case.communication:
            cells.append(_percent(case.communication.get(label)))
        speeds.add_row(*cells)
        peak = max(run.memory_bytes for run in runs)
        times.add_row(label, *_milliseconds(runs), f"{peak / MIB:.0f}")
    write_table(console, speeds)
    write_table(console, times)
    ratios = make_table("ratio|tokens/s|decode", left=1)
    decode_ratios = case.decode_ratios()
    for pair, spread in case.ratios().items():
        decode = decode_ratios.get(pair)
        ratios.add_row(" / ".join(pair), spread.text(2), decode.text(2) if decode else "–")
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
        f"{median(run.gap_p99_seconds for run in runs) * 1e3:.0f}",
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
