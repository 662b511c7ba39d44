"""Memory of each rank over tensor-parallel degrees, predicted and measured, in one run:
`python benchmarks/memory_table.py [--models default,random] [--degrees 1,2] …`.

The form is that of DeepSpeed's automatic tensor parallelism tutorial (T5-11B: 21.06, 10.56 and
5.31 GB on each GPU at TP 1, 2 and 4). Each row is a run of `launch/measure.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.load.systems import ROOT
from benchmarks.random_llama import ensure_random_llama
from parallel.conversion.default_model import ensure_default_model
from parallel.conversion.progress import say
from parallel.report.render import make_console, make_table, write_line, write_table

_MODELS: dict[str, Callable[[], Path]] = {
    "default": ensure_default_model,
    "random": ensure_random_llama,
}
_WORKLOAD = (
    "workload.input_tokens=64",
    "workload.output_tokens=8",
    "workload.concurrency=1",
    "repeats=1",
    "engine.context_tokens=256",
    "engine.requests=4",
    "baseline=none",
)
_COUNTED = ("weights", "kv_cache", "activations")


@dataclass(frozen=True)
class Row:
    """Bytes of the fullest rank: its weights, and all of its tensors at their peak."""

    model: str
    tp: int
    weights_predicted: int
    weights_measured: int
    tensors_predicted: int
    tensors_measured: int


def main() -> None:
    arguments = _arguments()
    rows = [
        _measure(_directory(model), tp) for model in arguments.models for tp in arguments.degrees
    ]
    _print(rows)
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models",
        type=lambda text: text.split(","),
        default=list(_MODELS),
        metavar="default,random,DIR",
    )
    parser.add_argument("--degrees", type=_degrees, default=[1, 2], metavar="1,2,4")
    parser.add_argument("--output", type=Path, help="the rows as JSON")
    return parser.parse_args()


def _degrees(text: str) -> list[int]:
    if not all(part.isdecimal() and int(part) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers from 1 on")
    return [int(part) for part in text.split(",")]


def _directory(name: str) -> Path:
    return _MODELS[name]() if name in _MODELS else Path(name)


def _measure(model: Path, tp: int) -> Row:
    """Ends the program with measure's own message where it fails."""
    say(f"measuring {model.name} with tp={tp}")
    with tempfile.TemporaryDirectory(prefix="tessera-memory-") as scratch:
        file = Path(scratch) / "out.json"
        command = [sys.executable, "launch/measure.py", f"model='{model}'", f"tp={tp}"]
        command += [*_WORKLOAD, "run_folder=null", f"output='{file}'"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr.strip())
        return _row(model.name, tp, json.loads(file.read_text())["layout"]["report"]["ranks"])


def _row(model: str, tp: int, ranks: Iterable[Mapping[str, Any]]) -> Row:
    held = [rank["memory_bytes"] for rank in ranks]

    def most(kind: str, causes: Sequence[str]) -> int:
        return max(sum(int(memory[cause][kind]) for cause in causes) for memory in held)

    return Row(
        model,
        tp,
        most("predicted", ("weights",)),
        most("measured", ("weights",)),
        most("predicted", _COUNTED),
        most("measured", _COUNTED),
    )


def _print(rows: Iterable[Row]) -> None:
    console = make_console()
    table = make_table(
        "model|TP size|weights: predicted|measured|all tensors: predicted|measured", 1
    )
    above = ""
    for row in rows:
        figures = (
            row.weights_predicted,
            row.weights_measured,
            row.tensors_predicted,
            row.tensors_measured,
        )
        name, above = "" if row.model == above else row.model, row.model
        table.add_row(name, str(row.tp), *(f"{figure / 1e9:.3f} GB" for figure in figures))
    write_line(console, "Memory of the fullest rank")
    write_table(console, table)


if __name__ == "__main__":
    main()
