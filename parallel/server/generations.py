"""What the generations of a restarted server know of each other.

Torch elastic gives each attempt a folder beside those before it, on each host. The front process,
which sees every death, leaves there when it ended, and on which port. A job that Slurm queues again
may be on another host: its batch script says when the one before ended (`TESSERA_ENDED`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parallel.environment import ENDED

_FILE = "tessera-front.json"


@dataclass(frozen=True)
class Ended:
    """The death of a generation: seconds since 1970, and the port that it served on, None where a
    host's free port means nothing any more."""

    at_unix_seconds: float
    port: int | None


@dataclass(frozen=True)
class Generation:
    """`restarts` of this job so far; `folder` is this attempt's, None without torch elastic;
    `before` is None for a first generation, and where the one before could leave no word."""

    restarts: int
    folder: Path | None
    before: Ended | None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Generation:
        attempt = int(environment.get("TORCHELASTIC_RESTART_COUNT") or 0)
        requeued = int(environment.get("SLURM_RESTART_COUNT") or 0)
        error_file = environment.get("TORCHELASTIC_ERROR_FILE")
        folder = None if not error_file else Path(error_file).parent.parent
        before = None
        if folder is not None and attempt:
            before = _read(folder.with_name(f"attempt_{attempt - 1}"))
        elif requeued and ENDED in environment:
            before = _said(environment[ENDED])
        return cls(attempt + requeued, folder, before)

    def port(self, wanted: int) -> int:
        """A port that was free for the first generation stays the server's."""
        known = None if self.before is None else self.before.port
        return known if known is not None and wanted == 0 else wanted

    def ended(self, port: int) -> None:
        """Leaves word to the next generation, if there may be one."""
        if self.folder is None:
            return
        with suppress(FileNotFoundError):  # it went with torch elastic: nobody comes after
            made = self.folder / f"{_FILE}.{os.getpid()}"
            made.write_text(json.dumps(asdict(Ended(time.time(), port))))
            made.replace(self.folder / _FILE)


def _read(folder: Path) -> Ended | None:
    try:
        return Ended(**json.loads((folder / _FILE).read_text()))
    except FileNotFoundError:
        return None


def _said(seconds: str) -> Ended | None:
    try:
        return Ended(float(seconds), None)
    except ValueError:  # a batch script that couldn't read the clock
        return None


def recovery(generation: Generation, listening: float, ready: float) -> dict[str, Any]:
    """`restart` of the report, from times since 1970. `seconds` are from the death to ready, null
    where there was none or nobody saw it; `loading_seconds` from the bound port to ready."""
    before = generation.before
    return {
        "restarts": generation.restarts,
        "seconds": None if before is None else ready - before.at_unix_seconds,
        "loading_seconds": ready - listening,
    }
