"""Memory that ranks of one host have mapped together.

A group maps one file of /dev/shm, which is unlinked as soon as every rank has it.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import torch

from parallel.collectives.exchange import Exchange
from parallel.errors import RunError

_FOLDER = Path("/dev/shm")


def map_segment(key: str, size: int, exchange: Exchange, ranks: Sequence[int]) -> torch.Tensor:
    """`size` bytes, zero at first: the same on all `ranks`, which call it together. `key` is for
    this once.

    Raises `RunError` on each of them when one of them can't."""
    first = exchange.rank == ranks[0]
    if first:
        exchange.put(f"{key}/name", f"tessera_{secrets.token_hex(8)}")
    path = _FOLDER / exchange.get(f"{key}/name")
    try:
        problem, segment = "", None
        if first:
            problem, segment = _mapped(path, size, create=True)
            exchange.put(f"{key}/made", problem)
        else:
            problem = exchange.get(f"{key}/made")
            if not problem:
                problem, segment = _mapped(path, size, create=False)
        problem = next(filter(None, exchange.collect(f"{key}/mapped", problem, ranks)), "")
    finally:
        if first:
            path.unlink(missing_ok=True)
    if segment is None or problem:
        raise RunError(f"the ranks' shared memory {path} can't be mapped: {problem}")
    return segment


def _mapped(path: Path, size: int, create: bool) -> tuple[str, torch.Tensor | None]:
    """What went wrong, or the bytes; a new file's are zero and really there."""
    flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
    try:
        file = os.open(path, flags, 0o600)
        try:
            if create:
                os.posix_fallocate(file, 0, size)
            return "", torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8)
        finally:
            os.close(file)
    except OSError as error:
        return str(error), None
