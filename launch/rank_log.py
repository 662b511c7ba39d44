"""What a rank prints, in its run's folder as well: `rank0.log`, `rank1.log`, ….

Standard output and error of the rank's own Python; what native libraries and child processes write
goes to the terminal alone. Progress bars stay out of it.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO, cast


class RankLog:
    """Keeps what is said until it knows where to write it."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._file: TextIO | None = None
        self._decided = False

    def open(self, folder: Path | None) -> None:
        """Writes into `folder` from now on, what came before too; nowhere where that is None, or
        this host can't write it. Another call changes nothing."""
        if self._decided:
            return
        self._decided = True
        if folder is not None:
            self._file = _opened(folder)
        if self._file is not None:
            self._file.write("".join(self._kept))
        self._kept.clear()

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
        if self._file is not None:
            self._file.close()
            self._file = None


def _opened(folder: Path) -> TextIO | None:
    """Ranks that are started anew go on in the same file; a rank may end at any moment, so that
    lines are written as they come."""
    name = f"rank{os.environ.get('RANK', '0')}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / name).open("a", encoding="utf-8", errors="replace", buffering=1)
    except OSError as error:
        message = f"warning: no log of this rank ({folder / name}: {error.strerror})"
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
    log = RankLog()
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    log.stamp(f"rank {rank} of {world} on {platform.node()}, process {os.getpid()}")
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Both(stream, log)) for stream in before)
    try:
        yield log
        log.stamp("ended well")
    finally:
        sys.stdout, sys.stderr = before
        log.close()
