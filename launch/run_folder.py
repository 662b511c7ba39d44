"""A run's folder: its configuration, its report, and what each rank printed.

One for all ranks and all their starts. The process that starts ranks makes it and tells them by an
environment variable; ranks that torchrun started hear of it from rank 0.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import yaml  # type: ignore[import-untyped]

from launch.entry import is_first_rank, under_torchrun
from launch.provenance import plain_settings
from launch.restarts import folder_before, folder_before_requeue, leave_folder, leave_job
from launch.schema import CalibrateCommand, RunKeys
from launch.sweep import point_folder
from parallel.environment import OUTPUTS, RUN_FOLDER
from parallel.errors import ConfigError

CONFIG, REPORT = "config.yaml", "report.json"
AUTO = "auto"
_DEFAULT_OUTPUTS = "outputs"


class Store(Protocol):
    """Small facts between ranks."""

    def put(self, key: str, value: Any) -> None: ...
    def get(self, key: str) -> Any: ...


class RunFolder:
    """Made when it is first asked for, so that input refused before leaves nothing behind."""

    def __init__(self, settings: RunKeys | CalibrateCommand):
        self._settings = settings
        self._told = os.environ.get(RUN_FOLDER) if under_torchrun() else None
        self._known = self._told is not None
        self._path = Path(self._told) if self._told else None

    @property
    def decided_here(self) -> bool:
        """Whether this process can say where it is: a launcher told it, or it is the first."""
        return self._known or is_first_rank()

    def path(self) -> Path | None:
        """None where there is none. Raises `ConfigError` where `run_folder` can't be written."""
        if not self._known:
            self._path = self._make()
            self._known = True
        return self._path

    def agree(self, store: Store) -> Path | None:
        """Every rank's once all have joined: rank 0's, wherever nothing else was said."""
        if is_first_rank():
            path = self.path()
            store.put("run_folder", None if path is None else str(path))
        elif not self._known:
            found = store.get("run_folder")
            self._path, self._known = None if found is None else Path(found), True
        return self._path

    def write(self, name: str, body: Any) -> None:
        path = self.path()
        if path is not None:
            (path / name).write_text(json.dumps(body, indent=2) + "\n")

    def _make(self) -> Path | None:
        asked = self._settings.run_folder
        if asked is None:
            return None
        try:
            text = yaml.safe_dump(plain_settings(self._settings), sort_keys=False)
            path = _own_place(text) if asked == AUTO else _given(Path(asked))
            if path is not None:
                leave_folder(path)
                (path / CONFIG).write_text(text, encoding="utf-8")
            return path
        except OSError as error:
            if asked != AUTO:
                raise ConfigError(
                    f"run_folder={asked}: {error.strerror}; give a folder that can be written, or "
                    "null for none"
                ) from None
            print(
                f"warning: no folder for this run ({error.filename}: {error.strerror}); say "
                "run_folder=FOLDER, or null for none",
                file=sys.stderr,
                flush=True,
            )
            return None


def _given(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()


def _own_place(config: str) -> Path | None:
    """A sweep's point has its folder; a run that is started anew keeps its own; else one by date,
    time and the command's name. `config` is what the folder will say of its run."""
    known = point_folder() or folder_before()
    if known is not None:
        return _given(known)
    outputs = os.environ.get(OUTPUTS, _DEFAULT_OUTPUTS)
    if not outputs:
        return None
    root, command = Path(outputs).expanduser().resolve(), Path(sys.argv[0]).stem
    before = folder_before_requeue(root.glob(f"*/*-{command}*/{CONFIG}"), config)
    if before is not None:
        return before
    day = root / f"{datetime.now():%Y-%m-%d}"
    day.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now():%H-%M-%S}-{command}"
    for number in count(1):
        path = day / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        leave_job(path)
        return path
    raise AssertionError("numbers don't end")


@contextmanager
def told_to_ranks(path: Path | None) -> Iterator[None]:
    """Ranks that are started meanwhile use `path`."""
    before = os.environ.get(RUN_FOLDER)
    os.environ[RUN_FOLDER] = "" if path is None else str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ[RUN_FOLDER]
        else:
            os.environ[RUN_FOLDER] = before
