"""`python launch/submit.py job=serve tp=4 pp=2`: the same keys as a job of a cluster.

Plans first, asks the scheduler for what the plan needs and no more; what can't fit is refused
before it waits in a queue.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hydra.core.hydra_config import HydraConfig

from launch import kubernetes, skypilot, slurm
from launch.entry import EXIT_DONE, EXIT_FAILED, run_command
from launch.job_command import JobCommand, check_job_keys, job_command
from launch.job_resources import Resources, resources
from launch.planning import decide, model_spec
from launch.run_folder import AUTO
from launch.running import check_formats, check_run_keys, show_plan
from launch.schema import JobKind, SubmitBackend, SubmitCommand, SubmitMode
from launch.serve import api_key, check_keys
from parallel.environment import OUTPUTS
from parallel.errors import ConfigError
from parallel.planner.plan import Plan

_READY = "ready http://"


def main(settings: SubmitCommand) -> int:
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    check_job_keys(settings.job, settings.backend, overrides)
    _check(settings)
    if settings.backend is SubmitBackend.slurm:
        check_run_keys(settings)
        _check_files(settings)
    else:
        # Files are those of the containers.
        check_run_keys(replace(settings, report=None, trace=None))
    plan = decide(settings, model_spec(settings), None)
    check_formats(plan)
    needed = resources(plan, settings.nodes, settings.cores)
    command = job_command(settings.job, overrides, plan, needed, settings.restarts)
    if settings.backend is SubmitBackend.kubernetes:
        _check_volume(settings)
        print(kubernetes.manifests(_deployed(settings, plan, command, needed)), end="")
        return EXIT_DONE
    if settings.backend is SubmitBackend.skypilot:
        device = plan.cluster.device(0).type.name
        deployed = _deployed(settings, plan, command, needed)
        print(skypilot.task(deployed, device, settings.skypilot), end="")
        return EXIT_DONE
    return _slurm(settings, plan, command, needed)


def _check(settings: SubmitCommand) -> None:
    for key, value in (("input", settings.input), ("output", settings.output)):
        if settings.job is JobKind.generate and value is None:
            raise ConfigError(f"{key} is not given; job=generate needs it: say {key}=…")
    check_keys(settings)
    minutes, start = settings.slurm.minutes, settings.kubernetes.start_minutes
    if minutes is not None and minutes < 0:
        raise ConfigError(f"slurm.minutes={minutes} is negative; give 0 or more")
    for option in settings.slurm.options:
        if not option.startswith("-"):
            raise ConfigError(f"slurm.options: '{option}' is no option; say '--{option}'")
    for key, number in (("cores", settings.cores), ("kubernetes.start_minutes", start)):
        if number is not None and number < 1:
            raise ConfigError(f"{key}={number} is out of range; give at least 1")
    if settings.backend is SubmitBackend.slurm or settings.job is not JobKind.serve:
        return
    if settings.port == 0:
        raise ConfigError("port=0: others must know the port of a container; give 1 to 65535")


def _check_files(settings: SubmitCommand) -> None:
    """A job that waited in a queue for a file that isn't there is a pity."""
    if settings.job is JobKind.serve:
        api_key(settings)
    if settings.job is JobKind.generate and not Path(str(settings.input)).is_file():
        raise ConfigError(
            f"input={settings.input} is not a file; give JSON lines with 'prompt', on a disk that "
            "the job's nodes see too"
        )


def _check_volume(settings: SubmitCommand) -> None:
    """Raises `ConfigError` when the model isn't in the volume that is mounted for it."""
    keys = settings.kubernetes
    if keys.model_claim is None or settings.model is None:
        return
    if not Path(settings.model).is_relative_to(keys.model_path):
        raise ConfigError(
            f"model={settings.model} is not below kubernetes.model_path={keys.model_path}, where "
            f"the volume of kubernetes.model_claim={keys.model_claim} is; give the path that the "
            "model has there"
        )


def _slurm(settings: SubmitCommand, plan: Plan, command: JobCommand, needed: Resources) -> int:
    job = slurm.SlurmJob(
        settings.job.value,
        command,
        needed,
        settings.slurm,
        Path(settings.folder).resolve(),
        settings.drain_seconds if settings.job is JobKind.serve else 0.0,
        settings.run_folder == AUTO and bool(os.environ.get(OUTPUTS, AUTO)),
    )
    if settings.submit is SubmitMode.dry:
        print(job.script(), end="")
        return EXIT_DONE
    show_plan(plan)
    number = slurm.submit(job)
    log = Path(job.log.replace("%j", number))
    print(f"submitted job {number}, log {log}", flush=True)
    if not settings.follow:
        return EXIT_DONE
    serves = settings.job is JobKind.serve
    ended = slurm.follow(number, log, _show, _READY if serves else None)
    good = ended == "RUNNING" if serves else ended == "COMPLETED"
    if not good:
        print(f"error: job {number} is {ended}; its log is {log}", file=sys.stderr, flush=True)
    return EXIT_DONE if good else EXIT_FAILED


def _show(line: str) -> None:
    print(line, flush=True)


def _deployed(
    settings: SubmitCommand, plan: Plan, command: JobCommand, needed: Resources
) -> kubernetes.Deployed:
    return kubernetes.Deployed(
        job=settings.job,
        model=plan.layout.spec.name,
        command=command,
        needed=needed,
        keys=settings.kubernetes,
        port=settings.port,
        drain_seconds=settings.drain_seconds,
    )


if __name__ == "__main__":
    run_command("submit", SubmitCommand, main)
