"""Run as a program, `python tee.py FILE OUT ERR` with three descriptors: what comes by OUT and ERR
goes on to standard output and error, and all of it into FILE, until both have ended.

Imports nothing but builtin modules, so that it starts in milliseconds.
"""

from __future__ import annotations

import os
import select
import sys

_PIECE_BYTES = 1 << 16


def main(file: int, pipes: dict[int, int]) -> None:
    """`pipes`: where each leads."""
    lost: set[int] = set()
    coming = select.poll()
    for pipe in pipes:
        coming.register(pipe, select.POLLIN)
    left = len(pipes)
    while left:
        for pipe, _ in coming.poll():
            piece = os.read(pipe, _PIECE_BYTES)
            if not piece:
                coming.unregister(pipe)
                left -= 1
            for place in {pipes[pipe], file} - lost:
                if not _written(place, piece):
                    lost.add(place)


def _written(place: int, piece: bytes) -> bool:
    """False when it takes nothing any more: a terminal that is gone, a disk that is full."""
    while piece:
        try:
            piece = piece[os.write(place, piece) :]
        except BlockingIOError:
            ready = select.poll()
            ready.register(place, select.POLLOUT)
            ready.poll()
        except OSError:
            return False
    return True


if __name__ == "__main__":
    log, out, err = map(int, sys.argv[1:])
    main(log, {out: 1, err: 2})
