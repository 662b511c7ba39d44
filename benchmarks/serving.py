"""Serving beside other systems, on the same checkpoint and the same cores, in one run:
`python benchmarks/serving.py [--models default,random] [--clients 1,8,32] [--turns 3] …`.

Systems take turns, each started anew, and a ratio is taken within a turn. The peers' environments
come from `python benchmarks/peers/install.py`.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.load.jobs import DECODE, MIXED, Lengths, make_load
from benchmarks.load.machine import describe, read_bandwidths
from benchmarks.load.results import Case, Results
from benchmarks.load.running import Setting, SystemFailed, Turn, take_turn
from benchmarks.load.systems import OURS, SYSTEMS, System
from benchmarks.load.tables import print_results
from benchmarks.models import MODELS
from benchmarks.peers.gguf_file import ensure_gguf
from benchmarks.peers.install import default_folder, is_installed, python_of
from parallel.conversion.progress import say
from parallel.report.render import make_console

_LENGTHS = {"mixed": MIXED, "decode": DECODE}


def main() -> None:
    # An end from outside ends the systems too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    arguments = _arguments()
    systems = [SYSTEMS[label] for label in arguments.systems]
    before = read_bandwidths()
    with tempfile.TemporaryDirectory(prefix="tessera-serving-") as scratch:
        folder = arguments.logs or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        cases = [
            case
            for name in arguments.models
            for case in _compare(MODELS[name](), systems, arguments, folder)
        ]
    results = Results(describe(sys.argv, before), cases)
    print_results(results, make_console())
    if arguments.json:
        arguments.json.write_text(json.dumps(results.to_json(), indent=2) + "\n")
    if any(label.startswith(OURS) for case in cases for label in case.failures):
        raise SystemExit("a run of our own failed: see above")


def _compare(
    model: Path, systems: Iterable[System], arguments: argparse.Namespace, scratch: Path
) -> list[Case]:
    """Every system in turn; one that failed once isn't tried again."""
    named = _LENGTHS[arguments.load]
    lengths = Lengths(arguments.prompt or named.prompt, arguments.output or named.output)
    vocabulary = int(json.loads((model / "config.json").read_text())["vocab_size"])
    gguf = ensure_gguf(model)
    turns: dict[str, list[Turn]] = {}
    failures: dict[str, str] = {}
    for turn in range(arguments.turns):
        loads = [
            make_load(lengths, clients, clients * arguments.rounds, vocabulary, turn)
            for clients in arguments.clients
        ]
        setting = Setting(model, gguf, vocabulary, loads, arguments.seconds)
        for system in systems:
            if system.label in failures:
                continue
            say(f"{model.name}, turn {turn + 1} of {arguments.turns}: {system.label}")
            try:
                python = _python(system, arguments.peers)
                turns.setdefault(system.label, []).append(
                    take_turn(system, python, setting, scratch)
                )
            except SystemFailed as error:
                failures[system.label] = str(error)
    complete = {label: found for label, found in turns.items() if label not in failures}
    return [
        Case.of(model, arguments.load, clients, i, complete, failures)
        for i, clients in enumerate(arguments.clients)
    ]


def _python(system: System, folder: Path) -> Path:
    if system.name == OURS:
        return Path(sys.executable)
    name = system.environment
    if not is_installed(folder, name):
        raise SystemFailed(
            f"isn't in {folder}: python benchmarks/peers/install.py --systems {name}"
        )
    return python_of(folder, name)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", type=_choices(MODELS), default=["default", "random"], metavar="A,B"
    )
    parser.add_argument(
        "--systems", type=_choices(SYSTEMS), default=list(SYSTEMS), metavar=",".join(SYSTEMS)
    )
    parser.add_argument("--load", choices=_LENGTHS, default="mixed")
    parser.add_argument("--prompt", type=_range, metavar="32-512", help="tokens, instead")
    parser.add_argument("--output", type=_range, metavar="16-128", help="tokens, instead")
    parser.add_argument("--clients", type=_counts, default=[1, 8, 32], metavar="1,8,32")
    parser.add_argument("--rounds", type=_count, default=4, help="requests of each client")
    parser.add_argument("--turns", type=_count, default=3)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="after them a load sends nothing more"
    )
    parser.add_argument("--peers", type=Path, default=default_folder(), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keeps what systems print")
    return parser.parse_args()


def _choices(known: Iterable[str]) -> Callable[[str], list[str]]:
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


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return _count(first), _count(last or first)


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
