"""The user's cache: where converted models lie, and how processes share the work of making one."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from parallel.conversion.progress import say
from parallel.environment import CACHE
from parallel.errors import CheckpointError

STAMP = "conversion.json"


def cache_directory() -> Path:
    """`$TESSERA_CACHE`, else `$XDG_CACHE_HOME/tessera`, else `~/.cache/tessera`."""
    own = os.environ.get(CACHE)
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    root = Path(shared).expanduser() if shared else Path.home() / ".cache"
    return (root / "tessera").absolute()


@contextmanager
def locked(path: Path, progress: bool = True) -> Iterator[None]:
    """Holds the lock file `path` against other processes; waits for its holder."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that prepares {path.stem}", progress)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_made(directory: Path, stamp: Mapping[str, object]) -> bool:
    """Whether `directory` was made from what `stamp` says, and still has all its files."""
    try:
        found = json.loads((directory / STAMP).read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(found, dict) or {k: found.get(k) for k in stamp} != dict(stamp):
        return False
    files = found.get("files")
    return isinstance(files, dict) and all(
        (directory / name).is_file() and (directory / name).stat().st_size == size
        for name, size in files.items()
    )


def ensure_made(
    directory: Path,
    stamp: Mapping[str, object],
    make: Callable[[Path, Path], None],
    progress: bool = True,
) -> Path:
    """`directory`, made by one process if it isn't there yet; it appears whole or not at all.

    `make(scratch, target)` fills the directory `target` and may use `scratch` on the way."""
    if is_made(directory, stamp):
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with locked(directory.parent / f"{directory.name}.lock", progress):
            if not is_made(directory, stamp):
                _make(directory, stamp, make)
    except OSError as error:
        raise CheckpointError(
            f"can't write the converted model to {directory}: {error}; "
            "make room there, or set TESSERA_CACHE to a directory that can be written"
        ) from error
    return directory


def _make(directory: Path, stamp: Mapping[str, object], make: Callable[[Path, Path], None]) -> None:
    work = directory.parent / f".{directory.name}.partial"
    shutil.rmtree(work, ignore_errors=True)
    target, scratch = work / directory.name, work / "scratch"
    target.mkdir(parents=True)
    scratch.mkdir()
    try:
        make(scratch, target)
        files = {file.name: file.stat().st_size for file in sorted(target.iterdir())}
        (target / STAMP).write_text(json.dumps({**stamp, "files": files}, indent=2) + "\n")
        if directory.exists():
            directory.rename(work / "replaced")
        target.rename(directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)
