"""The resident memory of this process, from /proc (Linux; proc(5))."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from weakref import finalize


def status_bytes(field: str, root: Path = Path("/proc/self")) -> int:
    """`VmRSS`, `VmHWM` (its peak), `RssAnon` …; 0 where the kernel doesn't say."""
    try:
        lines = (root / "status").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    return 0


class ResidentMemory:
    """The resident memory, read often: a descriptor that stays open, one line to parse. 0 where
    the kernel doesn't say."""

    def __init__(self, path: Path = Path("/proc/self/statm")):
        self._file: int | None = None
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        finalize(self, os.close, self._file)

    @property
    def bytes(self) -> int:
        if self._file is None:
            return 0
        return int(os.pread(self._file, 128, 0).split()[1]) * mmap.PAGESIZE


def reset_peak_rss(root: Path = Path("/proc/self")) -> bool:
    """Starts VmHWM anew; False where the kernel doesn't let us."""
    try:
        (root / "clear_refs").write_text("5")
    except OSError:
        return False
    return True
