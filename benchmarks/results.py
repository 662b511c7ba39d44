"""Runs of several systems on one task, compared: medians, ratios with their spread, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks.systems import OURS, THREADS
from benchmarks.workload import NEW_TOKENS, PROMPT_TOKENS, Measurement
from parallel.report.render import make_table, write_heading, write_line, write_table
from parallel.units import MIB


@dataclass(frozen=True)
class Spread:
    """Median, least and most of the repetitions."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}–{self.most:.{digits}f})"


@dataclass(frozen=True)
class Case:
    """One model at one batch size. `runs` are in the order of repetition, so that the ratio of
    two systems is taken between neighbours; `failures` hold the error of those that can't run."""

    model: str
    batch: int
    weight_bytes: int
    runs: Mapping[str, Sequence[Measurement]]
    failures: Mapping[str, str]

    def speed(self, label: str) -> Spread:
        return Spread.of([run.decode_tokens_per_second for run in self.runs[label]])

    def ratios(self) -> dict[tuple[str, str], Spread]:
        """How many times as fast each run of ours decodes as each peer's, turn by turn."""
        found = {}
        for ours in (label for label in self.runs if label.startswith(OURS)):
            for peer in (label for label in self.runs if not label.startswith(OURS)):
                turns = zip(self.runs[ours], self.runs[peer], strict=True)
                found[ours, peer] = Spread.of(
                    [a.decode_tokens_per_second / b.decode_tokens_per_second for a, b in turns]
                )
        return found

    def share_of_bound(self, label: str, bytes_per_second: float) -> float:
        """A decode step reads the weights once, whatever the batch: the part of the memory's
        bandwidth that this comes to."""
        steps_per_second = self.speed(label).median / self.batch
        return steps_per_second * self.weight_bytes / bytes_per_second

    def to_json(self, bytes_per_second: float) -> dict[str, Any]:
        systems = {
            label: {
                "decode_tokens_per_second": asdict(self.speed(label)),
                "share_of_bandwidth_bound": self.share_of_bound(label, bytes_per_second),
                "runs": [asdict(run) for run in runs],
            }
            for label, runs in self.runs.items()
        }
        return {
            "model": self.model,
            "batch": self.batch,
            "weight_bytes_per_step": self.weight_bytes,
            "systems": systems,
            "failures": dict(self.failures),
            "ratios": {f"{a} / {b}": asdict(spread) for (a, b), spread in self.ratios().items()},
        }


def print_case(case: Case, bandwidth: Mapping[int, float], console: Console) -> None:
    bound = bandwidth[THREADS] / case.weight_bytes * case.batch
    write_heading(
        console,
        f"{case.model}, batch {case.batch}: prompt {PROMPT_TOKENS}, {NEW_TOKENS} new tokens; "
        f"{case.weight_bytes / MIB:.0f} MiB of weights a step, bound {bound:.0f} tokens/s",
    )
    table = make_table("system|decode tokens/s|of bound|prefill tokens/s|peak MiB", left=1)
    for label, runs in case.runs.items():
        prefill = median(case.batch * PROMPT_TOKENS / run.prefill_seconds for run in runs)
        table.add_row(
            label,
            case.speed(label).text(1),
            f"{case.share_of_bound(label, bandwidth[THREADS]):.0%}",
            f"{prefill:.0f}",
            f"{max(run.peak_rss_bytes for run in runs) / MIB:.0f}",
        )
    write_table(console, table)
    ratios = make_table("decode speed|ratio", left=1)
    for (ours, peer), spread in case.ratios().items():
        ratios.add_row(f"{ours} / {peer}", spread.text(2))
    if ratios.row_count:
        write_table(console, ratios)
    for label, reason in case.failures.items():
        write_line(console, f"{label} can't run it: {reason}")
