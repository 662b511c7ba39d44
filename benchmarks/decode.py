"""Decode speed beside other systems on the same checkpoints, in one run:
`python benchmarks/decode.py [--models default,random] [--batches 1,8] [--repeats 3] …`.

Systems take turns, each run in processes of its own, and a ratio is taken within a turn.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from os import getloadavg
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from benchmarks.random_llama import ensure_random_llama
from benchmarks.results import Case, print_case
from benchmarks.systems import OURS, PEERS, ROOT, THREADS, SystemFailed, Task, systems
from benchmarks.workload import Measurement, write_prompts
from parallel.architecture.tensors import read_tensors
from parallel.conversion.default_model import ensure_default_model
from parallel.conversion.progress import say
from parallel.hardware.limits import memory_limit_bytes, usable_cores
from parallel.report.render import make_console, write_line
from parallel.units import format_bytes

_MODELS = {"default": ensure_default_model, "random": ensure_random_llama}
_PACKAGES = ("torch", "transformers", "deepspeed")


def main() -> None:
    arguments = _arguments()
    console = make_console()
    load = getloadavg()[0]
    bandwidth = _bandwidth()
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="tessera-decode-") as scratch:
        for name in arguments.models:
            model = _MODELS[name]()
            for batch in arguments.batches:
                cases.append(_case(model, batch, arguments, Path(scratch)))
    # The machine may have been busy at the start: the bound is the most that was seen.
    bandwidth = {n: max(bandwidth[n], again) for n, again in _bandwidth().items()}
    for case in cases:
        print_case(case, bandwidth, console)
    facts = _facts(bandwidth, load)
    write_line(console, f"\n{_dated_line(facts)}")
    if arguments.output:
        body = {**facts, "cases": [c.to_json(bandwidth[THREADS]) for c in cases]}
        arguments.output.write_text(json.dumps(body, indent=2) + "\n")
    if any(label.startswith(OURS) for case in cases for label in case.failures):
        raise SystemExit("a run of our own failed: see above")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", type=_choices(_MODELS), default=list(_MODELS), metavar="default,random"
    )
    parser.add_argument("--batches", type=_counts, default=[1, 8], metavar="1,8")
    parser.add_argument("--repeats", type=_count, default=3)
    parser.add_argument(
        "--peers", type=_choices(PEERS), default=["transformers"], metavar=",".join(PEERS)
    )
    parser.add_argument("--output", type=Path, help="the results as JSON")
    return parser.parse_args()


def _choices(known: Sequence[str] | Mapping[str, object]) -> Any:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(known)}")
        return names

    return parse


def _count(text: str) -> int:
    count = int(text) if text.isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 on")
    return count


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _case(model: Path, batch: int, arguments: argparse.Namespace, scratch: Path) -> Case:
    """Every system in turn, `repeats` times; one that fails once isn't tried again."""
    prompts = scratch / "prompts.jsonl"
    write_prompts(prompts, batch, json.loads((model / "config.json").read_text())["vocab_size"])
    task = Task(model, prompts, batch)
    runs: dict[str, list[Measurement]] = {}
    failures: dict[str, str] = {}
    turns = systems(arguments.peers) * arguments.repeats
    title = f"{model.name}, batch {batch}"
    on_terminal = sys.stderr.isatty()
    say(f"measuring {title}: {len(turns)} runs", not on_terminal)
    bar = tqdm(turns, desc=title, file=sys.stderr, disable=not on_terminal)
    for system in bar:
        bar.set_postfix_str(system.label)
        if system.label in failures:
            continue
        try:
            runs.setdefault(system.label, []).append(system.measure(task, scratch))
        except SystemFailed as error:
            failures[system.label] = str(error)
    complete = {label: found for label, found in runs.items() if label not in failures and found}
    return Case(model.name, batch, _weight_bytes(model), complete, failures)


def _weight_bytes(model: Path) -> int:
    """Read by one decode step: all weights, but of an embedding that isn't also the head only a
    row for each token, which is left out."""
    tied = json.loads((model / "config.json").read_text())["tie_word_embeddings"]
    return sum(
        tensor.place.end - tensor.place.start
        for name, tensor in read_tensors(model).items()
        if tied or name != "model.embed_tokens.weight"
    )


def _bandwidth() -> dict[int, float]:
    """Bytes per second that 1 and `THREADS` threads read, each in a fresh process."""
    found = {}
    for threads in sorted({1, THREADS}):
        command = [sys.executable, "-m", "benchmarks.bandwidth", str(threads)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        found[threads] = float(json.loads(done.stdout)["bytes_per_second"])
    return found


def _facts(bandwidth: Mapping[int, float], load: float) -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "benchmarks/decode.py", *sys.argv[1:]]),
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_bytes": memory_limit_bytes(),
        "load_before": load,
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "read_bytes_per_second": {str(n): rate for n, rate in bandwidth.items()},
    }


def _dated_line(facts: Mapping[str, Any]) -> str:
    reads = ", ".join(
        f"{rate / 1e9:.1f} GB/s on {threads} thread{'s' if threads != '1' else ''}"
        for threads, rate in facts["read_bytes_per_second"].items()
    )
    versions = ", ".join(f"{name} {found}" for name, found in facts["versions"].items())
    return (
        f"{facts['date']}: {facts['cpu']}, {facts['cores']:g} cores, "
        f"{format_bytes(facts['memory_bytes'])}, reads {reads}, load before "
        f"{facts['load_before']:.1f}; {versions}; {facts['command']}"
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
