"""Which start of a run this is, where torch elastic or Slurm starts its ranks anew, and what one
start leaves to those after it."""

from __future__ import annotations

import os
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


def _place() -> Path | None:
    """Beside the folders that torch elastic gives each attempt."""
    attempt = Generation.of(os.environ).folder
    return None if attempt is None else attempt.with_name(_FOLDER)
