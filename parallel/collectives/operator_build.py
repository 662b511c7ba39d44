"""Builds DeepSpeed's shared-memory operator, once for each user and version, and loads it.

Importing all of DeepSpeed for it would cost two seconds: its sources are found without.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import SubprocessError
from threading import Event, Thread
from types import ModuleType

import torch

from parallel.conversion.cache import cache_directory, locked
from parallel.errors import RunError

_NAME = "tessera_shm_comm"


def library_path() -> Path:
    version = importlib.metadata.version("deepspeed")
    mark = f"{_NAME}_{version}_torch{torch.__version__}_{sys.implementation.cache_tag}"
    safe = "".join(c if c.isalnum() or c == "_" else "_" for c in mark)
    return cache_directory() / "extensions" / safe / f"{_NAME}.so"


def build_operator() -> None:
    """Compiles the library if it isn't there; it appears whole or not at all. A process that was
    killed while it compiled stands in nobody's way. Raises `RunError` with the compiler's words."""
    library = library_path()
    if library.exists():
        return
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with locked(library.parent / "shared-memory all-reduce.lock"):
            if not library.exists():
                with _announced(
                    "building DeepSpeed's shared-memory all-reduce (once, then cached)"
                ):
                    _compile(library)
    except (RuntimeError, OSError, ImportError, SubprocessError) as error:
        log = library.parent / "build.log"
        if library.parent.is_dir() and os.access(library.parent, os.W_OK):
            log.write_text(f"{error}\n")
        raise RunError(f"building DeepSpeed's operator failed (the log is {log})") from error


def _compile(library: Path) -> None:
    from torch.utils import cpp_extension

    found = importlib.util.find_spec("deepspeed")
    assert found is not None and found.origin is not None
    sources = Path(found.origin).parent / "ops" / "csrc" / "cpu"
    work = library.parent / "building"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        cpp_extension.load(
            name=_NAME,
            sources=[str(sources / "comm" / f) for f in ("shm_interface.cpp", "shm.cpp")],
            extra_include_paths=[str(sources / "includes")],
            extra_cflags=["-O2", "-fopenmp"],
            build_directory=str(work),
        )
        (work / library.name).replace(library)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def load_operator() -> ModuleType:
    """The built library. Raises `ImportError` or `OSError` when it doesn't load."""
    library = library_path()
    loader = importlib.machinery.ExtensionFileLoader(_NAME, str(library))
    spec = importlib.util.spec_from_file_location(_NAME, library, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


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
