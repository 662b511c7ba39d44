"""Which backend an axis gets on CPU, and why: a pure function of what the ranks said of themselves.

Shared memory is two orders of magnitude faster than gloo for decode-sized tensors: the native
kernels', or DeepSpeed's where there are none, which is safe only under the conditions checked here
(docs/collectives.md).
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parallel.errors import ConfigError
from parallel.hardware.limits import cpu_flags, usable_cores
from parallel.planner.memory import CHANNEL_BYTES
from parallel.units import MIB, format_bytes

WORKSPACE_BYTES = 66 * MIB
"""What DeepSpeed's operator keeps in /dev/shm for each rank, but for a page of its state."""

NATIVE_SEGMENT_BYTES = 2 * MIB
"""What the native collectives keep there for each rank."""

_SEGMENT_BYTES = WORKSPACE_BYTES + 4096
_NO_AFFINITY = 1 << 20


@dataclass(frozen=True)
class RankFacts:
    """`host` tells machines apart; `cores` are the numbers of those that the rank may run on,
    `quota_cores` how many its container pays for; `shm_bytes` are free in /dev/shm; `lacks` says
    what the operator misses there, empty when nothing; `serves` names the group and place that the
    process's operator has been started for, empty when none; `native`: it has the native kernels,
    and needs no such operator."""

    host: str
    cores: Sequence[int]
    quota_cores: int
    shm_bytes: int
    lacks: str = ""
    serves: str = ""
    native: bool = False

    @classmethod
    def here(cls, serves: str = "", native: bool = False) -> RankFacts:
        return cls(
            _host(),
            sorted(os.sched_getaffinity(0)),
            usable_cores(affinity=_NO_AFFINITY),
            _free_shm(),
            missing_instructions(platform.machine(), cpu_flags()) or missing_build_tools(),
            serves,
            native,
        )

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


def missing_instructions(machine: str, flags: frozenset[str]) -> str:
    """The operator is compiled for AVX-512BW whatever the processor has, and its waits have no
    acquire fence: they are right where loads stay in order, as on x86-64."""
    if machine != "x86_64":
        return f"DeepSpeed's operator isn't safe on {machine}"
    return "" if "avx512bw" in flags else "the processor has no AVX-512BW"


def missing_build_tools() -> str:
    """What the operator's one-time build lacks here; empty when nothing."""
    if importlib.util.find_spec("deepspeed") is None:
        return "deepspeed is not installed"
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "no C++ compiler is installed"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python.h is not installed (Debian: python3-dev)"
    if shutil.which("ninja") is None:
        return "ninja is not on PATH"
    return ""


def group_mark(token: str, index: int, size: int) -> str:
    """What a rank's operator serves, once started: the `RankFacts.serves` of the rank."""
    return f"{token} {index} {size}"


def served_token(group: Sequence[RankFacts]) -> str:
    """The token of the group that the ranks' operators already serve, if it is this very group."""
    token = group[0].serves.partition(" ")[0]
    expected = [group_mark(token, i, len(group)) for i in range(len(group))]
    return token if [r.serves for r in group] == expected else ""


def all_native(group: Sequence[RankFacts]) -> bool:
    return all(r.native for r in group)


def choose_all_reduce(
    asked: str, axis: str, group: Sequence[RankFacts], world: Sequence[RankFacts]
) -> tuple[str, str]:
    """('shared_memory' or 'gloo', the reason). Raises `ConfigError` when shared memory was asked
    for and isn't safe for the tp axis."""
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
    if axis == "dp":
        return "replicas share no tensor"
    if axis == "pp" and not all_native(group):
        return "without the native kernels shared memory serves the tp axis alone"
    hosts = {r.host for r in group}
    if len(hosts) > 1:
        return f"its ranks are on {len(hosts)} hosts"
    neighbours = [r for r in world if r.host in hosts]
    cores = min(
        [len({c for r in neighbours for c in r.cores}), *(r.quota_cores for r in neighbours)]
    )
    if len(neighbours) > cores:
        return (
            f"{len(neighbours)} ranks share {cores} cores, and shared memory spins while it waits"
        )
    room = min(r.shm_bytes for r in neighbours)
    if all_native(group):
        channel = CHANNEL_BYTES if axis == "pp" else 0
        return _short_of(room, (NATIVE_SEGMENT_BYTES + channel) * len(neighbours))
    lacking = next((r.lacks for r in group if r.lacks), "")
    if lacking:
        return lacking
    if served_token(group):
        return ""
    if any(r.serves for r in group):
        return "a process of it has used its one shared-memory group for other ranks"
    return _short_of(room, _SEGMENT_BYTES * len(neighbours))


def _short_of(room: int, needed: int) -> str:
    if room >= needed:
        return ""
    return f"/dev/shm has {format_bytes(room)} free, {format_bytes(needed)} are needed"
