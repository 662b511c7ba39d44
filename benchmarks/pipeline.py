"""What stages bring: decode throughput with a microbatch of B requests for each of them, beside one
rank that runs the whole model on B requests:
`python benchmarks/pipeline.py [--models random] [--batches 4,8] [--stages 2] [--repeats 3] …`.

Each rank has one thread. Layouts take turns, each run in processes of its own, and a ratio is taken
within a turn. Times are those of the trace, of steps with every microbatch in flight.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.load.measured import Spread
from benchmarks.models import MODELS
from parallel.conversion.progress import say
from parallel.report.render import make_console, make_table, write_heading, write_line, write_table

ROOT = Path(__file__).resolve().parent.parent
_PROMPT_TOKENS, _NEW_TOKENS, _SEED = 64, 64, 7
_LEAST_ID, _MOST_ID = 3, 2000
_LIMIT_SECONDS = 1200.0

Event = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One layout, once. `idle`: of each stage, the share of a round in which it computes
    nothing."""

    stages: int
    tokens_per_second: float
    idle: tuple[float, ...]


@dataclass(frozen=True)
class Case:
    """One model, `batch` requests a microbatch; `runs` by number of stages, in turns."""

    model: str
    batch: int
    runs: dict[int, list[Run]]

    def ratio(self, stages: int) -> Spread:
        turns = zip(self.runs[stages], self.runs[1], strict=True)
        return Spread.of([a.tokens_per_second / b.tokens_per_second for a, b in turns])

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "batch": self.batch,
            "runs": [asdict(run) for runs in self.runs.values() for run in runs],
            "ratios": {str(n): asdict(self.ratio(n)) for n in self.runs if n > 1},
        }


def main() -> None:
    arguments = _arguments()
    console = make_console()
    cases = []
    for name in arguments.models:
        model = MODELS[name]()
        for batch in arguments.batches:
            case = Case(model.name, batch, {n: [] for n in (1, *arguments.stages)})
            for turn in range(arguments.repeats):
                for stages, runs in case.runs.items():
                    say(f"{case.model}, {batch} requests, pp={stages}, turn {turn + 1}")
                    runs.append(_run(model, batch, stages))
            cases.append(case)
    for case in cases:
        write_heading(console, f"{case.model}: microbatches of {case.batch} requests, decode")
        table = make_table("layout|tokens/s|ratio to pp=1|idle of each stage", left=1)
        for stages, runs in case.runs.items():
            rate = Spread.of([run.tokens_per_second for run in runs])
            idle = [median(shares) for shares in zip(*(run.idle for run in runs), strict=True)]
            table.add_row(
                f"pp={stages}",
                rate.text(1),
                "" if stages == 1 else case.ratio(stages).text(2),
                " ".join(f"{share:.0%}" for share in idle),
            )
        write_table(console, table)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps([c.to_json() for c in cases], indent=2) + "\n")
        write_line(console, f"written to {arguments.output}")


def _run(model: Path, batch: int, stages: int) -> Run:
    """The launcher that users call, with a microbatch for each stage."""
    requests = batch * stages
    with tempfile.TemporaryDirectory(prefix="tessera-pipeline-") as scratch:
        prompts, trace = Path(scratch, "prompts.jsonl"), Path(scratch, "trace.json")
        prompts.write_text("".join(f"{line}\n" for line in _prompts(requests)))
        settings = {
            "model": model,
            "tp": 1,
            "pp": stages,
            "threads": 1,
            "run_folder": "null",
            "input": prompts,
            "output": Path(scratch, "output.jsonl"),
            "trace": trace,
            "trace_steps": stages * _NEW_TOKENS // 2,
            "engine.requests": requests,
            "engine.step_tokens": batch * _PROMPT_TOKENS,
        }
        command = [sys.executable, "launch/generate.py", *(f"{k}={v}" for k, v in settings.items())]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=_LIMIT_SECONDS,
            check=False,
        )
        if done.returncode:
            sys.exit(f"error: {' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
        return measure(json.loads(trace.read_text())["traceEvents"], batch, stages)


def _prompts(count: int) -> list[str]:
    chooser = random.Random(_SEED)
    asked = {"max_tokens": _NEW_TOKENS, "temperature": 0.0, "ignore_eos": True}
    return [
        json.dumps(
            {
                "prompt_token_ids": [
                    chooser.randint(_LEAST_ID, _MOST_ID) for _ in range(_PROMPT_TOKENS)
                ],
                **asked,
            }
        )
        for _ in range(count)
    ]


def measure(events: Sequence[Event], batch: int, stages: int) -> Run:
    """From a trace whose last steps decode. A round gives each of `stages` microbatches a token;
    the median round counts, since others may use the machine."""
    spans = [e for e in events if e["ph"] == "X" and e["args"]["phase"] == "decode"]
    idle, rounds = [], []
    for rank in range(stages):
        own = [e for e in spans if e["pid"] == rank]
        steps = sorted((e for e in own if e["name"].startswith("decode step")), key=_begin)
        waits = {e["args"]["step"]: e["dur"] for e in own if e["name"] == "recv stage"}
        begins = [_begin(e) for e in steps]
        rounds = [b - a for a, b in zip(begins, begins[stages:], strict=False)]
        busy = [e["dur"] - waits.get(e["args"]["step"], 0.0) for e in steps]
        computed = [sum(busy[i : i + stages]) for i in range(len(rounds))]
        idle.append(median(max(0.0, 1 - c / r) for c, r in zip(computed, rounds, strict=True)))
    return Run(stages, batch * stages / (median(rounds) / 1e6), tuple(idle))


def _begin(event: Event) -> float:
    return float(event["ts"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="decode throughput of stages beside one rank")
    parser.add_argument("--models", type=_words, default=["random"], help=f"of {', '.join(MODELS)}")
    parser.add_argument("--batches", type=_numbers, default=[4, 8], help="requests a microbatch")
    parser.add_argument("--stages", type=_numbers, default=[2], help="numbers of stages")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    return parser.parse_args()


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
