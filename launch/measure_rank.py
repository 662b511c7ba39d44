"""One rank of a measurement: `launch/measure.py` starts as many as the layout has.

Rank 0 writes what all have counted to `output`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from os import getloadavg
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.entry import EXIT_FAILED, is_first_rank, run_command
from launch.run_folder import RunFolder
from launch.running import start_or_join
from launch.schema import MeasureCommand
from parallel.errors import ConfigError
from parallel.planner.plan import Plan

Json = dict[str, Any]


def main(settings: MeasureCommand) -> int:
    def done(found: Json) -> None:
        Path(str(settings.output)).write_text(json.dumps(found))

    def rank(directory: Path, plan: Plan) -> int:
        return measure_on_rank(settings, directory, plan, done)

    return start_or_join(
        settings,
        Path(__file__).resolve(),
        rank,
        lambda _, plan: check_workload(plan),
        after_signal=EXIT_FAILED,
    )


def check_workload(plan: Plan) -> None:
    """A prompt and one token must fit the context (longer answers are cut), all clients a replica's
    places and queue."""
    asked, context = plan.workload.input_tokens, plan.context_tokens
    if asked >= context:
        raise ConfigError(
            f"workload.input_tokens={asked} doesn't fit the context of {context} tokens, one "
            f"generated token included; give at most {context - 1}"
        )
    clients, most = plan.workload.concurrency, plan.limits.most_sequences
    if clients > most:
        raise ConfigError(
            f"workload.concurrency={clients} is more than may run and wait in a replica at once, "
            f"{most}; raise engine.queue"
        )


def measure_on_rank(
    settings: MeasureCommand,
    directory: Path,
    plan: Plan,
    done: Callable[[Json], None],
    folder: RunFolder | None = None,
) -> int:
    """`done` gets what was found, on rank 0 alone."""
    # Here torch comes in: the process that only plans and starts ranks does without.
    from launch.rank import Host, run_rank
    from parallel.runtime.job import RankJob
    from parallel.runtime.measuring import RecordingWorker, measure

    check_workload(plan)
    load = getloadavg()[0]

    def say(what: str) -> None:
        if is_first_rank():
            print(what, file=sys.stderr, flush=True)

    def work(job: RankJob, host: Host | None) -> None:
        found = measure(job, settings.repeats, say)
        if found is not None:
            where = {"axes": job.mesh.describe(), "device": job.device.name}
            done({**found, **where, "load_average": load})

    return run_rank(settings, directory, plan, Host, work, RecordingWorker, folder)


if __name__ == "__main__":
    run_command("measure", MeasureCommand, main)
