"""How true the planner is on real GPUs: its predictions beside published measurements.

    python benchmarks/plan_accuracy.py evaluate=DIR [output=json] [held_out=true]

DIR holds any of `serving.csv` (serving runs of other engines), `collectives.csv` and `gemm.csv`.
Nothing is fitted here: devices come from configs/clusters/devices, engines from
benchmarks/accuracy/engines.yaml. Errors are |predicted - measured| / measured, of all rows and by
model, GPU, engine and format. `held_out=true`: the half that nothing was fitted to (odd lines of
serving.csv; products and collectives are fitted anew to one half and show the other). A GPU or a
model left out wholly: benchmarks/accuracy/fit_engines.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.accuracy import fitting, kernels, serving
from benchmarks.accuracy.engines import engines
from benchmarks.accuracy.rows import read_runs
from benchmarks.accuracy.summary import grouped
from parallel.errors import ConfigError, TesseraError, did_you_mean

Json = dict[str, Any]
KEYS = ("evaluate", "output", "held_out")


@dataclass(frozen=True)
class Options:
    directory: Path
    as_json: bool
    held_out: bool


def parse(words: Sequence[str]) -> Options:
    values = {"evaluate": "", "output": "table", "held_out": "false"}
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        if key not in KEYS:
            raise ConfigError(
                f"unknown key '{key}'{did_you_mean(key, KEYS)}; known: {', '.join(KEYS)}"
            )
        values[key] = value
    for key, legal in (("output", ("table", "json")), ("held_out", ("true", "false"))):
        if values[key] not in legal:
            raise ConfigError(f"{key}={values[key]} is unknown; give {' or '.join(legal)}")
    if not values["evaluate"]:
        raise ConfigError(
            "evaluate=DIR is missing: a folder with serving.csv, collectives.csv, gemm.csv"
        )
    directory = Path(values["evaluate"])
    if not directory.is_dir():
        raise ConfigError(f"evaluate={directory} is not a folder; give one with the CSV files")
    return Options(directory, values["output"] == "json", values["held_out"] == "true")


def evaluate_serving(path: Path, half: Callable[[int], bool] | None = None) -> Json:
    """Errors of every dense row; the others with their reasons. `half` picks rows by line."""
    runs, left_out = read_runs(path)
    if half is not None:
        runs = [run for run in runs if half(run.line)]
    found, impossible = serving.errors(runs, engines())
    skipped = sorted([*left_out, *impossible], key=lambda s: s.line)
    whole = {
        "rows": len(found),
        "tpot": grouped(found, lambda e: e.tpot),
        "ttft": grouped(found, lambda e: e.ttft),
        "skipped": [{"row": s.line, "reason": s.reason} for s in skipped],
    }
    for name, key in _GROUPS.items():
        whole[name] = {
            group: {
                "rows": len(members),
                "tpot": grouped(members, lambda e: e.tpot),
                "ttft": grouped(members, lambda e: e.ttft),
            }
            for group, members in _by(found, key).items()
        }
    return whole


_GROUPS: dict[str, Callable[[serving.Error], str]] = {
    "by_model": lambda e: e.run.model,
    "by_gpu": lambda e: e.run.gpu,
    "by_engine": lambda e: e.run.engine,
    "by_weights": lambda e: e.run.weights,
}


def _by(
    found: Sequence[serving.Error], key: Callable[[serving.Error], str]
) -> dict[str, list[serving.Error]]:
    groups: dict[str, list[serving.Error]] = {}
    for error in found:
        groups.setdefault(key(error), []).append(error)
    return dict(sorted(groups.items()))


def evaluate(options: Options) -> Json:
    parts: dict[str, Callable[[Path], Json]] = {
        "serving": evaluate_serving,
        "collectives": fitting.held_out_collectives if options.held_out else kernels.collectives,
        "gemm": fitting.held_out_gemm if options.held_out else kernels.gemm,
    }
    if options.held_out:
        parts["serving"] = lambda path: evaluate_serving(path, lambda line: line % 2 == 1)
    result: Json = {}
    for name, part in parts.items():
        path = options.directory / f"{name}.csv"
        if path.is_file():
            result[name] = part(path)
    if not result:
        raise ConfigError(f"evaluate={options.directory} holds none of {', '.join(parts)} (.csv)")
    return result


def main() -> int:
    try:
        options = parse(sys.argv[1:])
        result = evaluate(options)
    except TesseraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.as_json:
        print(json.dumps(result, indent=2))
    else:
        from benchmarks.accuracy.tables import show

        show(result, options.held_out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
