"""A sweep watched by its points' files: a live table on a terminal, else a line for each change.

The files are all there is to see of points in other processes and on other machines. They are read
once a second, results once: watching must not be felt in what is measured.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.live import Live

from launch.sweep import MEASURED, POINT, RESULT, RUNNING, WAITING, current_points, read_json
from parallel.errors import ConfigError
from parallel.report.render import make_console
from parallel.report.sweep_table import PointRow, point_line, point_rows, sweep_table

Json = dict[str, Any]
_INTERVAL_SECONDS = 1.0


@contextmanager
def watching(folder: Path, table: bool) -> Iterator[None]:
    """Shows the sweep in `folder` meanwhile: `table` on the terminal that standard output is, which
    then belongs to it; lines on standard error otherwise."""
    with ExitStack() as stack:
        points = _Points(folder)
        show = _live_table(stack) if table else _Lines(points.rows())
        done = Event()
        thread = Thread(target=_watch, args=(points, show, done), name="sweep", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _watch(points: _Points, show: Callable[[Mapping[str, PointRow]], None], done: Event) -> None:
    over = False
    while not over:
        over = done.wait(_INTERVAL_SECONDS)
        try:
            show(points.rows())
        except (ConfigError, OSError):
            # A broken file is the sweep's to report in the end; a lost one is back when looked for.
            continue


class _Points:
    """Points as their files say now, by their folders' names; results are kept."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._results: dict[Path, Json] = {}

    def rows(self) -> Mapping[str, PointRow]:
        points = {}
        for place, point in current_points(self._folder):
            result = self._result(place) if point["state"] == MEASURED else {}
            if point["state"] == RUNNING:
                point["seconds"] = max(0.0, time.time() - (place / POINT).stat().st_mtime)
            points[place.name] = {**point, "result": result}
        return dict(zip(points, point_rows(list(points.values())), strict=True))

    def _result(self, place: Path) -> Json:
        if place not in self._results:
            self._results[place] = read_json(place / RESULT)
        return self._results[place]


class _Lines:
    def __init__(self, before: Mapping[str, PointRow]):
        self._states = {key: row.state for key, row in before.items()}

    def __call__(self, rows: Mapping[str, PointRow]) -> None:
        for key, row in rows.items():
            if row.state not in (WAITING, self._states.get(key)):
                print(point_line(row), file=sys.stderr, flush=True)
            self._states[key] = row.state


def _live_table(stack: ExitStack) -> Callable[[Mapping[str, PointRow]], None]:
    """On a descriptor of its own: points send theirs elsewhere."""
    terminal = stack.enter_context(os.fdopen(os.dup(sys.stdout.fileno()), "w"))
    console = make_console(terminal)
    live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    stack.enter_context(live)

    def show(rows: Mapping[str, PointRow]) -> None:
        live.update(sweep_table(list(rows.values()), console.height), refresh=True)

    return show
