"""Which start of a run this is, where torch elastic or Slurm starts its ranks anew, and what one
start leaves to those after it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from parallel.server.generations import Generation

_FOLDER = "tessera-run-folder"


def start_number() -> int:
    """1 for the first."""
    return 1 + Generation.of(os.environ).restarts


def leave_folder(path: Path) -> None:
    """Tells later starts of torch elastic, on this host, where this run's folder is."""
    place = _place()
    if place is not None:
        with suppress(FileNotFoundError):  # it went with torch elastic: nobody comes after
            place.write_text(str(path))


def folder_before() -> Path | None:
    """Where an earlier start had it, None for a first one and where nobody left word."""
    place = _place()
    if place is None:
        return None
    try:
        return Path(place.read_text())
    except FileNotFoundError:
        return None


def leave_job(path: Path) -> None:
    """Tells later starts of Slurm, which share no more than the disk, whose folder this is."""
    job = _slurm_job()
    if job is not None:
        (path / job).touch()


def folder_before_requeue(configs: Iterable[Path], config: str) -> Path | None:
    """Where the run was before Slurm queued its job again: of the job's folders the last whose
    configuration was `config`. None for a job's first start."""
    job = _slurm_job()
    if job is None or not int(os.environ.get("SLURM_RESTART_COUNT") or 0):
        return None
    own = [file for file in configs if (file.parent / job).exists() and file.read_text() == config]
    return max(own).parent if own else None


def _slurm_job() -> str | None:
    """What a folder holds that is of this job: a file's name."""
    number = os.environ.get("SLURM_JOB_ID")
    return f"slurm-{number}" if number else None


def _place() -> Path | None:
    """Beside the folders that torch elastic gives each attempt."""
    attempt = Generation.of(os.environ).folder
    return None if attempt is None else attempt.with_name(_FOLDER)
