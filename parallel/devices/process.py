"""The resident memory of this process, from /proc (Linux; proc(5))."""

from __future__ import annotations

from pathlib import Path


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


def reset_peak_rss(root: Path = Path("/proc/self")) -> bool:
    """Starts VmHWM anew; False where the kernel doesn't let us."""
    try:
        (root / "clear_refs").write_text("5")
    except OSError:
        return False
    return True
