"""What this process may use: memory and cores, container limits respected.

`root` stands for `/`, so that another machine's files can be read in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from shutil import which

from parallel.errors import HardwareError

_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 writes a number near 2**63 where there is no limit."""


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """MemTotal, or the least limit of the cgroups (v1, v2) that this process is in."""
    limits = [_memory_total_bytes(root)]
    for folder in _cgroup_folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            words = _words(folder / name)
            if words and words[0].isdigit() and 0 < int(words[0]) < _UNLIMITED_BYTES:
                limits.append(int(words[0]))
    return min(limits)


def usable_cores(root: Path = Path("/"), affinity: int | None = None) -> int:
    """The cores this process may run on, or as many as the CPU quota pays for."""
    cores = len(os.sched_getaffinity(0)) if affinity is None else affinity
    for folder in _cgroup_folders(root, "cpu"):
        words = _words(folder / "cpu.max") or (
            _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        )
        if len(words) == 2 and all(word.isdigit() and int(word) > 0 for word in words):
            cores = min(cores, max(1, int(words[0]) // int(words[1])))
    return cores


def cpp_compiler() -> str | None:
    """`$CXX`, or the first compiler of C++ on PATH."""
    return os.environ.get("CXX") or next(filter(which, ("g++", "c++", "clang++")), None)


def cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Instruction sets of the first processor in /proc/cpuinfo (`flags`, or ARM's `Features`)."""
    try:
        with (root / "proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in ("flags", "Features"):
                    return frozenset(value.split())
    except OSError:
        return frozenset()
    return frozenset()


def _memory_total_bytes(root: Path) -> int:
    words = _words(root / "proc/meminfo")
    try:
        return 1024 * int(words[words.index("MemTotal:") + 1])
    except (ValueError, IndexError):
        raise HardwareError(
            f"{root / 'proc/meminfo'} doesn't say MemTotal; describe this machine in a "
            "cluster YAML file and give its path as 'cluster'"
        ) from None


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """The folders that may hold the controller's limits, from the process's own cgroup up."""
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            tops = [mount, mount / "unified"]
        elif controller in controllers.split(","):
            tops = [mount / controllers, mount / controller]
        else:
            continue
        place = PurePosixPath(path.lstrip("/") or ".")
        for top in dict.fromkeys(tops):
            yield from (top / folder for folder in dict.fromkeys((place, *place.parents)))


def _lines(path: Path) -> list[str]:
    """The lines of a file that some systems lack or hide."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()
