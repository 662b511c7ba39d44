"""Standard output and error of a rank as descriptors: what native libraries and child processes
write there, in a file as well.

A process of its own stands between (`launch/tee.py`): unlike a thread of the rank it outlives an
abort, and has the last words of whoever made it. It is this Python, so that a container needs no
shell.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

_STANDARD = (1, 2)
_TEE = Path(__file__).resolve().with_name("tee.py")
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE_SECONDS = 1.0
"""Processes that a rank started may hold its descriptors longer than it does."""
_LINE_BUFFERED = 1


class Descriptors:
    """Where they lead at first is the terminal, whatever that is."""

    def __init__(self) -> None:
        self._terminal = {number: os.dup(number) for number in _STANDARD}
        self._tee: subprocess.Popen[bytes] | None = None

    def stream(self, standard: TextIO) -> TextIO:
        """Python's own `standard` stream, straight to the terminal as long as this lasts; itself
        when it doesn't write to a descriptor of these."""
        with suppress(OSError):
            if (terminal := self._terminal.get(standard.fileno())) is not None:
                standard.flush()
                encoding, errors = standard.encoding, standard.errors
                return open(terminal, "w", 1, encoding, errors, closefd=False)
        return standard

    def copy_to(self, file: int) -> None:
        """From now on to the terminal and to the descriptor `file`. Raises `OSError`, and changes
        nothing, where no process can be started."""
        before = self._tee
        pipes = {number: os.pipe() for number in _STANDARD}
        out, err = (read for read, _ in pipes.values())
        try:
            with _blocked():
                self._tee = subprocess.Popen(
                    [sys.executable, "-S", "-P", str(_TEE), str(file), str(out), str(err)],
                    stdin=subprocess.DEVNULL,
                    stdout=self._terminal[1],
                    stderr=self._terminal[2],
                    pass_fds=(file, out, err),
                    start_new_session=True,
                )
            for number, (_, write) in pipes.items():
                os.dup2(write, number)
        finally:
            for end in (end for pipe in pipes.values() for end in pipe):
                os.close(end)
        _print_lines_at_once()
        _wait(before)

    def restore(self) -> None:
        """To the terminal alone."""
        for number, terminal in self._terminal.items():
            os.dup2(terminal, number)
        _wait(self._tee)
        self._tee = None

    def close(self) -> None:
        self.restore()
        for terminal in self._terminal.values():
            os.close(terminal)
        self._terminal.clear()


@contextmanager
def _blocked() -> Iterator[None]:
    """Signals that end a job reach the rank, which may still have something to say, and never a
    process that is started here: it begins with this thread's mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(tee: subprocess.Popen[bytes] | None) -> None:
    if tee is not None:
        with suppress(subprocess.TimeoutExpired):
            tee.wait(_PATIENCE_SECONDS)


def _print_lines_at_once() -> None:
    """C's `stdout` would keep lines for a pipe that it wrote at once on a terminal, and a rank that
    ends at once would lose them."""
    libc = ctypes.CDLL(None)
    stdout = ctypes.c_void_p.in_dll(libc, "stdout")
    libc.setvbuf(stdout, None, _LINE_BUFFERED, ctypes.c_size_t(0))
