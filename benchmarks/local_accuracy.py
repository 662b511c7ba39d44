"""How true the planner is on this machine: measured steps, memory and ranking beside its own.

    python launch/calibrate.py output=here.yaml ranks=[1,2,4]
    python benchmarks/local_accuracy.py --cluster here.yaml

Each point is one run of launch/measure.py: a model, a layout, so many clients, prompts of one
length. A layout's *regret* is what the planner's first choice loses against the best measured one,
per workload. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.random_llama import ensure_random_llama
from parallel.report.render import make_console, make_table, write_heading, write_line, write_table

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("default", "random")
_HIDDEN = {"default": 576, "random": 1024}


@dataclass(frozen=True)
class Workload:
    model: str
    batch: int
    prompt: int


@dataclass(frozen=True)
class Point:
    """`steps` are predicted and measured seconds of a mean step by phase; `peak` predicted and
    measured bytes of all tensors of the rank that is furthest off."""

    workload: Workload
    layout: str
    steps: dict[str, tuple[float, float]]
    tokens_per_second: tuple[float, float]
    exact: bool
    peak: tuple[int, int]
    collectives_exact: bool
    instrument_share: float


def measure(workload: Workload, tp: int, pp: int, options: argparse.Namespace) -> Point:
    with TemporaryDirectory(prefix="tessera-accuracy-") as folder:
        file = Path(folder) / "measured.json"
        model = [] if workload.model == "default" else [f"model={ensure_random_llama()}"]
        command = [
            *(sys.executable, str(ROOT / "launch/measure.py"), *model, f"tp={tp}", f"pp={pp}"),
            *(f"cluster={options.cluster}", f"workload.concurrency={workload.batch}"),
            *(f"workload.input_tokens={workload.prompt}", "baseline=none", "repeats=2"),
            *(f"workload.output_tokens={options.tokens}", f"output={file}"),
            *("engine.context_tokens=2048", f"memory_gib={options.memory_gib}"),
            "run_folder=null",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
        return read_point(workload, f"tp={tp} pp={pp}", json.loads(file.read_text())["layout"])


def read_point(workload: Workload, layout: str, found: dict[str, Any]) -> Point:
    report = found["report"]
    memory = [rank["memory_bytes"] for rank in report["ranks"]]
    peaks = [(m["peak_tensors"]["predicted"], m["peak_tensors"]["measured"]) for m in memory]
    figure = found["tokens_per_second"]
    return Point(
        workload,
        layout,
        {
            phase: (step["step_ms"]["predicted"] / 1e3, step["step_ms"]["measured"] / 1e3)
            for phase, step in found["phases"].items()
            if step["step_ms"]["measured"]
        },
        (figure["predicted"], figure["measured"]),
        all(m[c]["predicted"] == m[c]["measured"] for m in memory for c in ("weights", "kv_cache")),
        max(peaks, key=lambda p: abs(p[0] - p[1]) / p[1]),
        collectives_exact(report, _HIDDEN[workload.model]),
        report["instrument"]["share"] or 0.0,
    )


def collectives_exact(report: dict[str, Any], hidden: int) -> bool:
    """Calls and bytes of all-reduces and sends, against their closed form for the tokens and steps
    that were run, in bf16."""
    plan, steps = report["plan"], report["steps"]
    stage_of = {r["rank"]: r["coordinates"]["pp"] for r in plan["ranks"]}
    checked = 0
    for row in report["collectives"]:
        if row["phase"] not in steps or row["op"] not in ("all_reduce", "send"):
            continue
        step, stage = steps[row["phase"]], plan["stages"][stage_of[row["rank"]]]
        first, end = stage["layers"]
        tp, size = stage["tp"], step["tokens"] * hidden * 2
        layers = end - first if row["layer"] in ("attention", "ffn") else 1
        sent = size if row["op"] == "send" else 2 * (tp - 1) * size // tp
        if (row["calls"], row["bytes"]) != (layers * step["steps"], layers * sent):
            return False
        checked += 1
    return checked > 0 or plan["world_size"] == 1


def regrets(points: Sequence[Point]) -> dict[Workload, tuple[str, str, float]]:
    """By workload: the layout predicted fastest, the one measured fastest, and what the first
    loses of the second's tokens per second."""
    out = {}
    for workload in dict.fromkeys(p.workload for p in points):
        here = [p for p in points if p.workload == workload]
        chosen = max(here, key=lambda p: p.tokens_per_second[0])
        best = max(here, key=lambda p: p.tokens_per_second[1])
        lost = 1 - chosen.tokens_per_second[1] / best.tokens_per_second[1]
        out[workload] = (chosen.layout, best.layout, lost)
    return out


def errors(points: Sequence[Point], phase: str) -> list[float]:
    pairs = [p.steps[phase] for p in points if phase in p.steps]
    return [predicted / measured - 1 for predicted, measured in pairs]


def show(points: Sequence[Point]) -> None:
    console = make_console()
    table = make_table(
        "model|B|prompt|layout|decode|prefill|tokens/s|measured|peak|bytes|calls|instr.", left=4
    )
    for p in points:
        predicted, measured = p.tokens_per_second
        steps = [
            f"{p.steps[f][0] / p.steps[f][1] - 1:+.1%}" if f in p.steps else "-"
            for f in ("decode", "prefill")
        ]
        table.add_row(
            *(p.workload.model, str(p.workload.batch), str(p.workload.prompt), p.layout, *steps),
            *(f"{predicted:.1f}", f"{measured:.1f}", f"{p.peak[0] / p.peak[1] - 1:+.2%}"),
            *("exact" if p.exact else "OFF", "exact" if p.collectives_exact else "OFF"),
            f"{p.instrument_share:.2%}",
        )
    write_heading(console, "Predicted against measured, on this machine")
    write_table(console, table)
    for phase in ("decode", "prefill"):
        found = [abs(e) for e in errors(points, phase)]
        write_line(
            console, f"{phase} steps: median error {median(found):.1%} of {len(found)} points"
        )
    for workload, (chosen, best, lost) in regrets(points).items():
        name = f"{workload.model}, {workload.batch} clients, prompts of {workload.prompt}"
        write_line(console, f"{name}: chosen {chosen}, fastest {best}, regret {lost:.1%}")


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def layouts(text: str) -> list[tuple[int, int]]:
    return [(int(tp), int(pp)) for tp, pp in (word.split("x") for word in text.split(","))]


def run(options: argparse.Namespace) -> Iterator[Point]:
    for model, batch, prompt in product(options.models, options.batches, options.prompts):
        for tp, pp in options.layouts:
            print(f"{model} B={batch} prompt={prompt} tp={tp} pp={pp}", file=sys.stderr, flush=True)
            yield measure(Workload(model, batch, prompt), tp, pp, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cluster", default="local")
    parser.add_argument("--models", type=lambda t: t.split(","), default=list(MODELS))
    parser.add_argument("--batches", type=numbers, default=[1, 4, 16])
    parser.add_argument("--prompts", type=numbers, default=[128, 1024])
    parser.add_argument("--layouts", type=layouts, default=[(1, 1), (2, 1), (1, 2), (2, 2)])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--memory-gib", type=float, default=2.0)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    points: list[Point] = []
    for point in run(options):
        points.append(point)
        if options.json is not None:
            options.json.write_text(json.dumps([asdict(p) for p in points], indent=2))
    show(points)


if __name__ == "__main__":
    main()
