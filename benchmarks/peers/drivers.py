"""What the drivers of peers without a server share: their arguments, and the order of a run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.load.jobs import READY, Load, Served


def driver_arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, type=Path, help="a checkpoint directory")
    parser.add_argument("--loads", required=True, type=Path, help="a folder of load files")
    parser.add_argument("--results", required=True, type=Path, help="a folder for the answers")
    parser.add_argument("--threads", required=True, type=int, help="of each rank")
    parser.add_argument("--seconds", required=True, type=float, help="nothing begins after them")
    return parser.parse_args()


def answer_loads(
    arguments: argparse.Namespace,
    warm_up: Callable[[Load], object],
    serve: Callable[[Load], Served],
    first_rank: bool,
) -> None:
    """Every load in the order of the files' names, each after a warm-up of its own; the first rank
    says when it is ready and writes what came."""
    for path in sorted(arguments.loads.glob("*.json")):
        load = Load.read(path)
        warm_up(load)
        if first_rank:
            (arguments.results / READY).touch()
        served = serve(load)
        if first_rank:
            served.write(arguments.results / path.name)
