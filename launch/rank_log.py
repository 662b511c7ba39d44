"""What a rank prints, in its run's folder as well: `rank0.log`, `rank1.log`, ….

Standard output and error of the rank's Python, of native libraries and of child processes. Progress
bars of its Python stay out of it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO, cast

from launch.descriptors import Descriptors
from launch.entry import is_first_rank
from launch.restarts import start_number


class RankLog:
    """Keeps what Python says until it knows where to write it; with `keep` all the rest too."""

    def __init__(self, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._kept: list[str] = []
        self._file: TextIO | None = None
        self._decided = False
        self._lacks_native = False

    def keep(self) -> None:
        """For a rank that is told only later where its log is."""
        try:
            spool = TemporaryFile("w+", 1, encoding="utf-8", errors="replace")  # noqa: SIM115
        except OSError as error:
            self._without_native(error)
        else:
            # The end is found anew at each write: two processes do.
            fcntl.fcntl(spool, fcntl.F_SETFL, fcntl.fcntl(spool, fcntl.F_GETFL) | os.O_APPEND)
            self._begin(cast(TextIO, spool))

    def open(self, folder: Path | None) -> None:
        """Writes into `folder` from now on, what came before too; nowhere where that is None, or
        this host can't write it. Another call changes nothing."""
        if self._decided:
            return
        self._decided = True
        spool, self._file = self._file, None
        path = None if folder is None else folder / f"rank{os.environ.get('RANK', '0')}.log"
        file = None if path is None else _opened(path)
        if file is not None:
            self._begin(file)
        else:
            self._descriptors.restore()
        if spool is not None:
            if file is not None:
                spool.seek(0)
                file.write(spool.read())
            spool.close()
        self._kept.clear()

    def _begin(self, file: TextIO) -> None:
        file.write("".join(self._kept))
        self._kept.clear()
        self._file = file
        try:
            self._descriptors.copy_to(file.fileno())
        except OSError as error:
            self._descriptors.restore()
            self._without_native(error)

    def _without_native(self, error: OSError) -> None:
        """Said once, and on the terminal by one rank: the others are like it."""
        if self._lacks_native:
            return
        self._lacks_native = True
        text = f"warning: logs of ranks lack what native code and child processes print ({error})"
        if is_first_rank():
            print(text, file=sys.stderr, flush=True)
        else:
            self.add(f"{text}\n")

    def add(self, text: str) -> None:
        if "\r" in text:
            return
        if self._file is not None:
            self._file.write(text)
        elif not self._decided:
            self._kept.append(text)

    def stamp(self, text: str) -> None:
        """A line with the time, in the file alone."""
        self.add(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}\n")

    def close(self) -> None:
        self.open(None)
        self._descriptors.close()
        if self._file is not None:
            self._file.close()
            self._file = None


def _opened(path: Path) -> TextIO | None:
    """Ranks that are started anew go on in the same file. They may end at any moment, so that lines
    are written as they come."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", 1, encoding="utf-8", errors="replace")
    except OSError as error:
        message = f"warning: no log of this rank ({path}: {error.strerror})"
        print(message, file=sys.stderr, flush=True)
        return None


class _Both:
    """A stream that is heard by a log too."""

    def __init__(self, stream: TextIO, log: RankLog):
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        written = self._stream.write(text)
        self._log.add(text)
        return written

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def rank_log() -> Iterator[RankLog]:
    descriptors = Descriptors()
    log = RankLog(descriptors)
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    who = f"rank {rank} of {world} on {platform.node()}, process {os.getpid()}"
    log.stamp(f"{who}, start {start_number()} of this run")
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        cast(TextIO, _Both(descriptors.stream(stream), log)) for stream in before
    )
    try:
        yield log
        descriptors.restore()
        log.stamp("ended well")
    finally:
        sys.stdout, sys.stderr = before
        log.close()
