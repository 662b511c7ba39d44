"""What serve and generate share: the decided plan, local ranks, loading with progress, reports."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch.entry import is_first_rank, under_torchrun, world_size
from launch.planning import decide, model_spec
from launch.ranks import start_local_ranks
from launch.run_folder import RunFolder
from launch.schema import CalibrateCommand, RunKeys
from parallel.conversion.resolve import resolve_model
from parallel.errors import ConfigError
from parallel.planner.plan import Plan
from parallel.report.render import make_console
from parallel.report.tables import plan_tables, report_tables

Json = dict[str, object]


def start_or_join(
    settings: RunKeys,
    script: Path,
    run_rank: Callable[[Path, Plan], int],
    check: Callable[[Path, Plan], object],
    after_signal: int,
    more: Sequence[str] = (),
    restarts: int = 0,
    folder: RunFolder | None = None,
    within: str = "",
) -> int:
    """Under torchrun: this process is a rank. Else: plans, then starts the ranks that it takes.

    `check` looks at the rest of the input; user errors come up before any rank is started.
    `after_signal` is the exit code of a run that SIGTERM or SIGINT ended; ranks are started with
    this process's arguments and `more`, and write their logs into `folder`, or `within` it."""
    check_run_keys(settings)
    if under_torchrun():
        directory = resolve_model(settings.model, progress=is_first_rank())
        plan = decide(settings, model_spec(settings, directory), world_size())
        check_formats(plan)
        return run_rank(directory, plan)
    # A plan needs no weights: refuse before a download.
    check_formats(decide(settings, model_spec(settings), None))
    directory = resolve_model(settings.model)
    plan = decide(settings, model_spec(settings, directory), None)
    check_formats(plan)
    check(directory, plan)
    ranks = plan.layout.degrees.world_size
    path = (folder or RunFolder(settings)).path()
    logs = None if path is None else path / within
    return start_local_ranks(script, ranks, after_signal, more, restarts, logs)


def check_run_keys(settings: RunKeys) -> None:
    if settings.threads is not None and settings.threads < 1:
        raise ConfigError(f"threads={settings.threads} is out of range; give at least 1")
    if settings.collective_timeout_seconds <= 0:
        raise ConfigError(
            f"collective_timeout_seconds={settings.collective_timeout_seconds} is out of range; "
            "give a positive number"
        )
    if settings.trace_steps < 1:
        raise ConfigError(f"trace_steps={settings.trace_steps} is out of range; give at least 1")
    for key in ("report", "trace"):
        file = getattr(settings, key)
        if file is not None and not Path(file).resolve().parent.is_dir():
            raise ConfigError(f"{key}={file}: its folder doesn't exist; make it first")


def check_formats(plan: Plan) -> None:
    """Several formats at once can be planned; the layers run in one, with a cache in the same or in
    eight bits."""
    f = plan.formats
    if f.weights != f.compute or (f.kv_cache != f.compute and f.kv_cache.bytes > 1):
        raise ConfigError(
            f"weights in {f.weights.name}, arithmetic in {f.compute.name} and cache in "
            f"{f.kv_cache.name} can be planned but not run: give precision.weights alone, or with "
            "precision.kv_cache=int8 or fp8"
        )


def show_plan(plan: Plan) -> None:
    if is_first_rank():
        body = {"plans": [plan.to_json()], "rejected": [], "choice": plan.choice}
        plan_tables(body, make_console())
        sys.stdout.flush()


def rank_numbers() -> tuple[int, int]:
    """This process's rank, and its number on its host."""
    return int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))


def local_threads(settings: RunKeys | CalibrateCommand) -> int:
    """Threads of this rank: its share of the cores, unless said."""
    if settings.threads is not None:
        return settings.threads
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // ranks)


@contextmanager
def loading_bar(total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on rank 0; other ranks load in silence."""
    if not is_first_rank():
        yield lambda _: None
        return
    from parallel.conversion.progress import byte_bar

    with byte_bar(total_bytes, "loading weights") as bar:
        yield bar.update


@contextmanager
def capturing_bar(graphs: int) -> Iterator[Callable[[int], None]]:
    """The same while graphs are captured, where there are any."""
    if not graphs or not is_first_rank():
        yield lambda _: None
        return
    from parallel.conversion.progress import count_bar

    with count_bar(graphs, "capturing graphs") as bar:
        yield bar.update


def show_report(report: Json, file: str | None) -> None:
    report_tables(report, make_console())
    sys.stdout.flush()
    if file is not None:
        Path(file).write_text(json.dumps(report, indent=2) + "\n")
