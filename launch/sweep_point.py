"""One point of a sweep, in whatever process Hydra's launcher runs it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from launch.sweep import FAILED, MEASURED, REFUSED, RUNNING, was_measured, write_point
from parallel.environment import RUN_FOLDER
from parallel.errors import TesseraError, UserError

OUTPUT = "output.log"
_OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK")
"""What a launcher's process may have inherited. A point is no rank: it starts its own."""


def run_point(folder: Path, run: Callable[[], int], quiet: bool = False) -> None:
    """Runs a point that wasn't measured before and writes down what became of it: first that it
    runs, which stays true of a point that is killed. Errors of one point are the sweep's result,
    not its end. `quiet`: what it prints goes to a file in its folder."""
    overrides = list(HydraConfig.get().overrides.task)
    # Ranks are started with this process's arguments.
    sys.argv[1:] = overrides
    for name in (*_OF_RANKS, RUN_FOLDER):
        os.environ.pop(name, None)
    if was_measured(folder):
        if not quiet:
            print(f"{' '.join(overrides)}: measured before", flush=True)
        return
    write_point(folder, overrides, RUNNING)
    began, state, reason, code = time.monotonic(), MEASURED, "", 0
    with _output_in(folder / OUTPUT) if quiet else nullcontext():
        try:
            code = run()
        except TesseraError as error:
            state = REFUSED if isinstance(error, UserError) else FAILED
            reason = str(error)
    if code:
        where = f"{folder / OUTPUT} says why" if quiet else "its messages say why"
        state, reason = FAILED, f"the run ended with {code}; {where}"
    write_point(folder, overrides, state, reason, time.monotonic() - began)


@contextmanager
def _output_in(file: Path) -> Iterator[None]:
    """What this process and those that it starts print, native code too."""
    streams = (sys.stdout, sys.stderr)
    before = [os.dup(number) for number in (1, 2)]
    _flush(streams)
    with file.open("w") as out:
        for number in (1, 2):
            os.dup2(out.fileno(), number)
    try:
        yield
    finally:
        _flush(streams)
        for number, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, number)
            os.close(kept)


def _flush(streams: tuple[object, ...]) -> None:
    for stream in streams:
        flush = getattr(stream, "flush", None)
        if flush is not None:
            flush()
