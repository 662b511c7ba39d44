"""Which backend an axis gets on CPU, and why: a pure function of what the ranks said of themselves.

DeepSpeed's shared-memory all-reduce is two orders of magnitude faster than gloo for decode-sized
tensors, and safe only under the conditions checked here (docs/collectives.md).
"""

from __future__ import annotations

import os
import shutil
import socket
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parallel.errors import ConfigError
from parallel.units import MIB, format_bytes

WORKSPACE_BYTES = 66 * MIB
"""What the operator keeps in /dev/shm for each rank."""


@dataclass(frozen=True)
class RankFacts:
    """`host` tells machines apart, `cores` are usable ones, `shm_bytes` free in /dev/shm."""

    host: str
    cores: int
    shm_bytes: int
    buildable: str

    @classmethod
    def here(cls) -> RankFacts:
        return cls(_host(), len(os.sched_getaffinity(0)), _free_shm(), missing_build_tools())

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)


def _host() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    mark = boot.read_text().strip() if boot.exists() else ""
    namespace = Path("/dev/shm").stat().st_dev if Path("/dev/shm").exists() else 0
    return f"{socket.gethostname()}/{mark}/{namespace}"


def _free_shm() -> int:
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return 0


def missing_build_tools() -> str:
    """What the operator's one-time build lacks here; empty when nothing."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "no C++ compiler is installed"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python.h is not installed (Debian: python3-dev)"
    if shutil.which("ninja") is None:
        return "ninja is not on PATH"
    return ""


def choose_all_reduce(
    asked: str, axis: str, group: Sequence[RankFacts], world: Sequence[RankFacts]
) -> tuple[str, str]:
    """('shared_memory' or 'gloo', the reason). Raises `ConfigError` when shared memory was asked
    for and isn't safe."""
    if asked == "gloo":
        return "gloo", "asked for"
    obstacle = _obstacle(axis, group, world)
    if not obstacle:
        return "shared_memory", "all its ranks are on this host, one core each"
    if asked == "shared_memory" and axis == "tp":
        raise ConfigError(
            f"collectives=shared_memory can't be had: {obstacle}; say collectives=auto"
        )
    return "gloo", obstacle


def _obstacle(axis: str, group: Sequence[RankFacts], world: Sequence[RankFacts]) -> str:
    if axis != "tp":
        return "the shared-memory operator serves the tp axis alone"
    hosts = {r.host for r in group}
    if len(hosts) > 1:
        return f"its ranks are on {len(hosts)} hosts"
    neighbours = [r for r in world if r.host in hosts]
    cores = min(r.cores for r in neighbours)
    if len(neighbours) > cores:
        return (
            f"{len(neighbours)} ranks share {cores} cores, and shared memory spins while it waits"
        )
    room = min(r.shm_bytes for r in neighbours)
    needed = WORKSPACE_BYTES * len(neighbours)
    if room < needed:
        return f"/dev/shm has {format_bytes(room)} free, {format_bytes(needed)} are needed"
    return next((r.buildable for r in group if r.buildable), "")
