"""Fits engines.yaml: one engine's few numbers to one half of the serving rows.

    python benchmarks/accuracy/fit_engines.py FILE.csv ENGINE [evaluations]

The rows on even lines are fitted to, those on odd lines are kept back (`held_out=true` of
plan_accuracy.py reports on them). Needs scipy (`pip install -e .[bench]`). Prints the numbers and
the errors on both halves; minutes of one core.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.accuracy.engines import FILE, read_engine
from benchmarks.accuracy.serving import Run, errors, predict, read_runs
from benchmarks.accuracy.summary import summary
from parallel.hardware.fields import read_yaml

FITTED = (
    *("step_seconds", "layer_seconds", "sequence_seconds", "eager_layer_seconds"),
    *("arrival_seconds", "arrival_token_seconds", "request_seconds", "answer_token_seconds"),
    *("attention_read", "attention_math", "math_share", "read_share", "start_share"),
)
_MOST = {"attention_read": 1.05, "attention_math": 0.9, "math_share": 1.05, "read_share": 1.05}
"""Rates beyond the hardware's mean that something else is wrong; a little for its measurement."""
_TOLERATED, _CAP, _FIRST_TOKEN_WEIGHT = 0.1, 0.5, 0.2


def loss(facts: Mapping[str, Any], runs: Sequence[Run]) -> float:
    """Mean log error of the time per output token, capped, with more weight beyond what is
    tolerated, and a share of that of the first token."""
    engine, total = read_engine(facts), 0.0
    for run in runs:
        ttft, tpot = predict(run, engine)
        off = min(_CAP, abs(math.log(tpot / run.tpot_seconds)))
        first = min(3 * _CAP, abs(math.log(ttft / run.ttft_seconds)))
        total += off + max(0.0, off - _TOLERATED) + _FIRST_TOKEN_WEIGHT * first
    return total / len(runs)


def fit(facts: dict[str, Any], runs: Sequence[Run], evaluations: int) -> dict[str, Any]:
    """Nelder-Mead in the logarithms of the numbers."""
    import numpy as np
    from scipy.optimize import minimize

    start = np.log([facts[name] for name in FITTED])
    steps = 0.3 * np.eye(len(start)) * np.where(np.arange(len(start)) % 2, 1, -1)

    def numbers(point: Any) -> dict[str, Any]:
        values = {n: float(v) for n, v in zip(FITTED, np.exp(point), strict=True)}
        return {**facts, **{n: min(v, _MOST.get(n, math.inf)) for n, v in values.items()}}

    options = {
        "maxfev": evaluations,
        "initial_simplex": np.vstack([start, start + steps]),
        "adaptive": True,
    }
    found = minimize(lambda p: loss(numbers(p), runs), start, method="Nelder-Mead", options=options)
    return {n: float(f"{v:.3g}") if n in FITTED else v for n, v in numbers(found.x).items()}


def main(words: Sequence[str]) -> None:
    file, engine, evaluations = Path(words[0]), words[1], int(words[2]) if len(words) > 2 else 200
    runs = [run for run in read_runs(file)[0] if run.engine == engine and run.gpu != "gb200"]
    facts = fit(read_yaml(FILE)[engine], [r for r in runs if r.line % 2 == 0], evaluations)
    for name, value in facts.items():
        print(f"  {name}: {value}")
    for half, name in ((0, "fitted"), (1, "kept back")):
        found = errors([r for r in runs if r.line % 2 == half], {"default": read_engine(facts)})
        tpot, ttft = summary([e.tpot for e in found]), summary([e.ttft for e in found])
        print(f"{name}: {len(found)} rows, next token {tpot}, first token {ttft}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
