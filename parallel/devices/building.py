"""Native code that is compiled where it runs: once for each user and version, then cached."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import SubprocessError
from threading import Event, Thread

import torch

from parallel.conversion.cache import cache_directory, locked
from parallel.errors import RunError


def library_file(name: str, mark: str) -> Path:
    """Where the library `name` lies; `mark` says all that makes one build unlike another, beside
    torch's version."""
    full = f"{name}_{mark}_torch{torch.__version__}_{sys.implementation.cache_tag}"
    safe = "".join(c if c.isalnum() or c == "_" else "_" for c in full)
    return cache_directory() / "extensions" / safe / f"{name}.so"


def build_once(library: Path, what: str, compile_in: Callable[[Path], None], advice: str) -> None:
    """Has `library` made if it isn't there; it appears whole or not at all. A process that was
    killed while it compiled stands in nobody's way. `compile_in` is given an empty folder, and
    leaves a file of the library's name there.

    Raises `RunError` with the place of the compiler's words, and `advice`."""
    if library.exists():
        return
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with locked(library.parent / f"{what}.lock"):
            if not library.exists():
                with _announced(f"building {what} (once, then cached)"):
                    _build(library, compile_in)
    except (RuntimeError, OSError, ImportError, SubprocessError) as error:
        log = library.parent / "build.log"
        if library.parent.is_dir() and os.access(library.parent, os.W_OK):
            log.write_text(f"{error}\n")
        raise RunError(f"building {what} failed (the log is {log}){advice}") from error


def _build(library: Path, compile_in: Callable[[Path], None]) -> None:
    work = library.parent / "building"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        compile_in(work)
        (work / library.name).replace(library)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _announced(what: str) -> Iterator[None]:
    """A line with the seconds so far on a terminal, a line at start and end elsewhere."""
    began, done, terminal = time.monotonic(), Event(), sys.stderr.isatty()

    def show() -> None:
        while not done.wait(1.0):
            seconds = time.monotonic() - began
            print(f"\r{what}: {seconds:.0f} s", end="", file=sys.stderr, flush=True)

    print(f"{what} …", end="\r" if terminal else "\n", file=sys.stderr, flush=True)
    thread = Thread(target=show, daemon=True)
    if terminal:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if terminal:
            thread.join()
        print(f"{what}: took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
