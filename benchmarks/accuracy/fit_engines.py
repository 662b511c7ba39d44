"""Fits engines.yaml: a version's few numbers to one half of its serving rows.

    python benchmarks/accuracy/fit_engines.py FILE.csv ENGINE [without]

ENGINE is a key of engines.yaml. The rows on even lines are fitted to, those on odd lines are kept
back (`held_out=true` of plan_accuracy.py reports on them). `without` a GPU or a model: one set of
numbers for all versions whose key begins with ENGINE, fitted to all of their rows but that GPU's
or model's, which are kept back. Numbers start at those of `default` and are held to them: few rows
move them little. Prints the numbers and the errors on both parts; a minute of one core.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accuracy.engines import FILE, engine_key, read_engine
from benchmarks.accuracy.rows import Run, read_runs
from benchmarks.accuracy.serving import predict
from benchmarks.accuracy.summary import summary
from parallel.calibration.least_squares import Array, minimise
from parallel.errors import ConfigError, TesseraError
from parallel.hardware.fields import read_yaml

Facts = Mapping[str, Any]
STRAY = {
    "step_seconds": 0.7,
    "layer_seconds": 0.4,
    "sequence_seconds": 0.7,
    "eager_layer_seconds": 0.7,
    "arrival_seconds": 0.7,
    "arrival_token_seconds": 0.7,
    "request_seconds": 1.0,
    "answer_token_seconds": 1.0,
    "attention_read": 0.15,
    "attention_math": 0.3,
    "math_share": 0.15,
    "read_share": 0.07,
    "start_share": 0.5,
    "spread": 0.5,
}
"""What is fitted, and how far it is expected from `default`'s, in logarithms: what the hardware
bounds hardly, what the host's program takes much."""
_MOST = {"attention_read": 1.05, "attention_math": 0.9, "math_share": 1.05, "read_share": 1.05}
"""Rates beyond the hardware's mean that something else is wrong; a little for its measurement."""
_TYPICAL_ERROR, _FIRST_TOKEN_WEIGHT = 0.1, 0.3
_STEP, _ROUNDS = 0.12, 5
"""Simulated loads jump a little as numbers change: slopes are taken over 12 %."""
_UNEXPLAINED = ("gb200",)
"""Rows that contradict each other (docs/planner.md): nothing is fitted to them."""


def fit(runs: Sequence[Run], known: Mapping[str, Facts]) -> dict[str, float]:
    """One set of numbers for `runs`; what isn't fitted is their own entry's."""
    own = [known[engine_key(run, known)] for run in runs]
    start = known["default"]
    names = [name for name in STRAY if all(facts.get(name) != 0 for facts in own)]

    def numbers(values: Array) -> dict[str, float]:
        found = zip(names, values, strict=True)
        return {name: min(float(v), _MOST.get(name, math.inf)) for name, v in found}

    def figures(values: Array) -> list[float]:
        fitted = numbers(values)
        engines = [read_engine(filled(facts, fitted)) for facts in own]
        times = [predict(run, engine) for run, engine in zip(runs, engines, strict=True)]
        return [f for ttft, tpot in times for f in (tpot, ttft**_FIRST_TOKEN_WEIGHT)]

    measured = [
        f for run in runs for f in (run.tpot_seconds, run.ttft_seconds**_FIRST_TOKEN_WEIGHT)
    ]
    held = [_TYPICAL_ERROR / STRAY[name] ** 2 for name in names]
    values, _ = minimise(figures, measured, [start[n] for n in names], held, _STEP, _ROUNDS)
    return {name: float(f"{value:.3g}") for name, value in numbers(values).items()}


def filled(entry: Facts, fitted: Facts) -> Facts:
    """A number that the entry says is 0 stays so."""
    return {**entry, **{name: v for name, v in fitted.items() if entry.get(name) != 0}}


def show(part: Sequence[Run], fitted: Facts, known: Mapping[str, Facts], name: str) -> None:
    first, following = [], []
    for run in part:
        ttft, tpot = predict(run, read_engine(filled(known[engine_key(run, known)], fitted)))
        first.append(ttft / run.ttft_seconds - 1)
        following.append(tpot / run.tpot_seconds - 1)
    print(f"{name}: {len(part)} rows, next token {summary(following)}")
    print(f"    first token {summary(first)}", flush=True)


def main(words: Sequence[str]) -> int:
    try:
        _fit_and_show(words)
    except TesseraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _fit_and_show(words: Sequence[str]) -> None:
    if len(words) not in (2, 3):
        raise ConfigError("give FILE.csv ENGINE, and a GPU or a model to leave out if any")
    file, engine, without = Path(words[0]), words[1], words[2] if len(words) > 2 else None
    known: dict[str, Facts] = read_yaml(FILE)
    if engine not in known:
        raise ConfigError(f"no engine '{engine}' in {FILE.name}; known: {', '.join(known)}")
    keyed = [(run, engine_key(run, known)) for run in read_runs(file)[0]]
    if without is None:
        runs = [run for run, key in keyed if key == engine]
        kept = [run for run in runs if run.line % 2 == 1]
    else:
        runs = [run for run, key in keyed if key.startswith(engine)]
        kept = [run for run in runs if without in (run.gpu, run.model)]
    if not kept or len(kept) == len(runs):
        raise ConfigError(
            f"{without or 'odd lines'}: {len(kept)} of {len(runs)} rows of '{engine}'"
        )
    fitted_to = [run for run in runs if run not in kept and run.gpu not in _UNEXPLAINED]
    fitted = fit(fitted_to, known)
    for name, value in fitted.items():
        print(f"  {name}: {value}")
    show(fitted_to, fitted, known, "fitted")
    show(kept, fitted, known, "kept back")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
