"""How time and memory grow with context, requests and layers, measured on small random models:
`python benchmarks/growth.py [--axes context,requests,layers] [--plot docs/growth.svg] …`.

Each point is a run of `launch/measure.py`. Exit status 1: something grows faster than it must.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.growth_fit import Axis, Quantity
from benchmarks.growth_plot import write_plot
from benchmarks.load.machine import describe, read_bandwidths
from benchmarks.load.systems import ROOT
from benchmarks.random_llama import Llama, ensure_random_llama
from parallel.conversion.progress import say
from parallel.report.render import (
    make_console,
    make_table,
    write_heading,
    write_line,
    write_table,
)
from parallel.units import MIB

_CONTEXT_TOKENS = 16384
_OUTPUT_TOKENS = 32


@dataclass(frozen=True)
class Run:
    """What is measured at one point."""

    layers: int = 4
    prompt_tokens: int = 128
    requests: int = 1
    hidden: int = 512


@dataclass(frozen=True)
class Point:
    """`host_ms` is what a decode step takes beside its computing; the cache is what sequences
    hold, the activations are live at the peak."""

    decode_ms: float
    host_ms: float
    prompt_ms: float
    cache_mib: float
    activations_mib: float


@dataclass(frozen=True)
class Plan:
    """An axis: its sizes, the run at each, and the exponent that a field of `Point` may have."""

    note: str
    sizes: Sequence[int]
    run: Callable[[int], Run]
    bounds: dict[str, float]


_NAMES = {
    "decode_ms": "decode step",
    "host_ms": "host per decode step",
    "prompt_ms": "a prompt",
    "cache_mib": "cache in use",
    "activations_mib": "activations",
}
_SMALL = Run()
_DEEP = replace(_SMALL, hidden=1024)
"""Whose weights leave nothing of the host's in the caches however few layers there are: what a step
that streams less finds there looks like growth with the layers."""
AXES = {
    "context": Plan(
        f"{_SMALL.layers} layers, one request.",
        [128, 256, 512, 1024, 2048, 4096, 8192],
        lambda size: replace(_SMALL, prompt_tokens=size),
        {"decode_ms": 1, "host_ms": 0, "prompt_ms": 2, "cache_mib": 1, "activations_mib": 1},
    ),
    "requests": Plan(
        f"{_SMALL.layers} layers, prompts of {_SMALL.prompt_tokens} tokens.",
        [1, 2, 4, 8, 16, 32, 64],
        lambda size: replace(_SMALL, requests=size),
        {"decode_ms": 1, "host_ms": 1, "cache_mib": 1, "activations_mib": 1},
    ),
    "layers": Plan(
        f"{_DEEP.hidden} wide, one request, prompts of {_DEEP.prompt_tokens} tokens.",
        [2, 4, 8, 16, 32],
        lambda size: replace(_DEEP, layers=size),
        {"decode_ms": 1, "host_ms": 0, "prompt_ms": 1, "cache_mib": 1, "activations_mib": 0},
    ),
}


def main() -> None:
    arguments = _arguments()
    before = read_bandwidths()
    axes = [_axis(name, AXES[name], arguments) for name in arguments.axes]
    machine = describe(sys.argv, before)
    too_fast = [words for axis in axes for words in axis.too_fast()]
    console = make_console()
    for axis in axes:
        write_heading(console, f"Against {axis.name}: {axis.note}")
        columns = [axis.name, *(f"{q.name} {q.unit}" for q in axis.quantities)]
        table = make_table("|".join(columns), left=1)
        for i, size in enumerate(axis.sizes):
            table.add_row(str(size), *(f"{q.values[i]:.3g}" for q in axis.quantities))
        table.add_row("power", *(axis.exponent(q).text() for q in axis.quantities))
        table.add_row("at most", *(f"{q.bound:g}" for q in axis.quantities))
        write_table(console, table)
    for words in too_fast or ["nothing grows faster than it must"]:
        write_line(console, words)
    write_line(console, f"\n{machine.line()}")
    if arguments.json:
        body = {**asdict(machine), "axes": [asdict(axis) for axis in axes], "too_fast": too_fast}
        arguments.json.write_text(json.dumps(body, indent=2) + "\n")
    if arguments.plot:
        write_plot(axes, f"{machine.date}, {machine.cpu}, {machine.cores:g} cores.", arguments.plot)
    raise SystemExit(1 if too_fast else 0)


def _axis(name: str, plan: Plan, arguments: argparse.Namespace) -> Axis:
    sizes = [size for size in plan.sizes if size <= (arguments.largest or size)]
    points = [measure(plan.run(size), arguments.layout) for size in sizes]
    quantities = [
        Quantity(
            _NAMES[field],
            "ms" if field.endswith("_ms") else "MiB",
            bound,
            [getattr(point, field) for point in points],
        )
        for field, bound in plan.bounds.items()
    ]
    return Axis(name, plan.note, sizes, quantities)


def measure(run: Run, layout: str) -> Point:
    """Raises `CalledProcessError`, after the launcher has said why."""
    say(f"{run}")
    model = ensure_random_llama(_model(run))
    with tempfile.TemporaryDirectory(prefix="tessera-growth-") as scratch:
        output = Path(scratch) / "measured.json"
        keys = {
            "model": model,
            "workload.input_tokens": run.prompt_tokens,
            "workload.output_tokens": _OUTPUT_TOKENS,
            "workload.concurrency": run.requests,
            "engine.requests": run.requests,
            "engine.context_tokens": run.prompt_tokens + _OUTPUT_TOKENS,
            "repeats": 1,
            "baseline": "none",
            "run_folder": "null",
            "output": output,
        }
        words = [*layout.split(","), *(f"{key}={value}" for key, value in keys.items())]
        command = [sys.executable, "launch/measure.py", *words]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return point(json.loads(output.read_text())["layout"], run)


def _model(run: Run) -> Llama:
    return Llama(
        f"random-llama-{run.layers}-layers-{run.hidden}-wide",
        run.layers,
        hidden=run.hidden,
        ffn=run.hidden * 11 // 4,
        heads=run.hidden // 64,
        kv_heads=run.hidden // 128,
        vocabulary=4096,
        context_tokens=_CONTEXT_TOKENS,
    )


def point(layout: Any, run: Run) -> Point:
    """From a trade-off's JSON; of the rank that holds most."""
    phases, report = layout["phases"], layout["report"]
    decode = phases["decode"]
    return Point(
        decode_ms=decode["step_ms"]["measured"],
        host_ms=decode["host_ms"]["measured"],
        prompt_ms=report["steps"]["prefill"]["measured_seconds"] * 1e3 / run.requests,
        cache_mib=max(entry["kv_used"] for entry in report["memory_timeline"]) / MIB,
        activations_mib=max(
            rank["memory_bytes"]["activations"]["measured"] for rank in report["ranks"]
        )
        / MIB,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axes", type=_names, default=list(AXES), metavar=",".join(AXES))
    parser.add_argument("--layout", default="tp=1,threads=1", metavar="tp=2,threads=1")
    parser.add_argument("--largest", type=int, help="leaves out what is larger")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture, .svg or .png")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in AXES:
            raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(AXES)}")
    return names


if __name__ == "__main__":
    main()
