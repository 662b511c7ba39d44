"""Standard output and error of a rank as descriptors: what native libraries and child processes
write there, in a file as well.

A `tee` for each stands between: unlike a thread of the rank it outlives an abort, and has the last
words of whoever made it.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

_STANDARD = (1, 2)
_TEE = 'trap "" INT TERM HUP; exec tee -a "$0"'
"""Signals that end a job reach the rank, which may still have something to say."""
_PATIENCE_SECONDS = 1.0
"""Processes that a rank started may hold its descriptors longer than it does."""
_LINE_BUFFERED = 1


class Descriptors:
    """Where they lead at first is the terminal, whatever that is."""

    def __init__(self) -> None:
        self._terminal = {number: os.dup(number) for number in _STANDARD}
        self._tees: list[subprocess.Popen[bytes]] = []

    def stream(self, standard: TextIO) -> TextIO:
        """Python's own `standard` stream, straight to the terminal as long as this lasts; itself
        when it doesn't write to a descriptor of these."""
        with suppress(OSError):
            if (terminal := self._terminal.get(standard.fileno())) is not None:
                standard.flush()
                encoding, errors = standard.encoding, standard.errors
                return open(terminal, "w", 1, encoding, errors, closefd=False)
        return standard

    def copy_to(self, file: str, held: Iterable[int] = ()) -> None:
        """From now on to the terminal and to the end of `file`, which may be one of the descriptors
        `held`. Raises `OSError` where there is no shell."""
        before, self._tees = self._tees, []
        for number, terminal in self._terminal.items():
            tee = subprocess.Popen(
                ["sh", "-c", _TEE, file],
                stdin=subprocess.PIPE,
                stdout=terminal,
                stderr=self._terminal[2],
                pass_fds=tuple(held),
                start_new_session=True,
            )
            self._tees.append(tee)
            assert tee.stdin is not None
            os.dup2(tee.stdin.fileno(), number)
            tee.stdin.close()
        _print_lines_at_once()
        _wait(before)

    def restore(self) -> None:
        """To the terminal alone."""
        for number, terminal in self._terminal.items():
            os.dup2(terminal, number)
        _wait(self._tees)
        self._tees = []

    def close(self) -> None:
        self.restore()
        for terminal in self._terminal.values():
            os.close(terminal)
        self._terminal.clear()


def _wait(tees: list[subprocess.Popen[bytes]]) -> None:
    for tee in tees:
        with suppress(subprocess.TimeoutExpired):
            tee.wait(_PATIENCE_SECONDS)


def _print_lines_at_once() -> None:
    """C's `stdout` would keep lines for a pipe that it wrote at once on a terminal, and a rank that
    ends at once would lose them."""
    libc = ctypes.CDLL(None)
    stdout = ctypes.c_void_p.in_dll(libc, "stdout")
    libc.setvbuf(stdout, None, _LINE_BUFFERED, ctypes.c_size_t(0))
