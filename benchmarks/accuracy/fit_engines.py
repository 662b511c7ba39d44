"""Fits engines.yaml: one engine's few numbers to one half of the serving rows.

    python benchmarks/accuracy/fit_engines.py FILE.csv ENGINE [evaluations] [without]

The rows on even lines are fitted to, those on odd lines are kept back (`held_out=true` of
plan_accuracy.py reports on them). `without` a GPU or a model: its rows are kept back instead, all
of them, and the fit begins at the numbers of `default`. Prints the numbers and the errors on both
parts; minutes of one core.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
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
    *("attention_read", "attention_math", "math_share", "read_share", "start_share", "spread"),
)
_MOST = {"attention_read": 1.05, "attention_math": 0.9, "math_share": 1.05, "read_share": 1.05}
"""Rates beyond the hardware's mean that something else is wrong; a little for its measurement."""
_TOLERATED, _CAP, _FIRST_TOKEN_WEIGHT = 0.1, 0.5, 0.35
_WIDEST, _NARROWEST = 0.5, 0.05
"""Spread of the steps of the search, in the logarithms of the numbers."""


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
    """A random search in the logarithms, one to three numbers at a time: the loss is too jagged,
    as simulated loads are, for methods that follow its slope."""
    chance, spread = Random(0), 0.7 * _WIDEST
    best, least = facts, loss(facts, runs)
    for _ in range(evaluations):
        tried = dict(best)
        for name in chance.sample(FITTED, chance.randint(1, 3)):
            value = best[name] * math.exp(spread * chance.gauss(0, 1))
            tried[name] = min(value, _MOST.get(name, math.inf))
        found = loss(tried, runs)
        if found < least:
            best, least = tried, found
            spread = min(_WIDEST, spread * 1.3)
        else:
            spread = max(_NARROWEST, spread * 0.98)
    return {n: float(f"{v:.3g}") if n in FITTED else v for n, v in best.items()}


def main(words: Sequence[str]) -> None:
    file, engine, evaluations = Path(words[0]), words[1], int(words[2]) if len(words) > 2 else 200
    without = words[3] if len(words) > 3 else None
    known = read_yaml(FILE)
    facts, runs = known[engine], [run for run in read_runs(file)[0] if run.engine == engine]
    if without is None:
        runs = [run for run in runs if run.gpu != "gb200"]
        kept = [run for run in runs if run.line % 2 == 1]
    else:
        kept = [run for run in runs if without in (run.gpu, run.model)]
        facts = {**facts, **{n: known["default"][n] for n in FITTED if n in known["default"]}}
    fitted = [run for run in runs if run not in kept and run.gpu != "gb200"]
    facts = fit(facts, fitted, evaluations)
    for name, value in facts.items():
        print(f"  {name}: {value}")
    for part, name in ((fitted, "fitted"), (kept, "kept back")):
        found = errors(part, {"default": read_engine(facts)})
        tpot, ttft = summary([e.tpot for e in found]), summary([e.ttft for e in found])
        print(f"{name}: {len(found)} rows, next token {tpot}, first token {ttft}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
