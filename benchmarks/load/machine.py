"""The machine that a result was measured on, and the memory bandwidth that it had at the time."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from os import getloadavg
from pathlib import Path

from benchmarks.load.systems import ROOT, THREADS
from parallel.hardware.limits import memory_limit_bytes, usable_cores
from parallel.units import format_bytes

_PACKAGES = ("torch", "transformers", "deepspeed")


@dataclass(frozen=True)
class Machine:
    """`read_bytes_per_second`: threads → the best that was seen; `load_before` is of the minute
    before."""

    date: str
    command: str
    cpu: str
    cores: int
    memory_bytes: int
    load_before: float
    versions: Mapping[str, str]
    read_bytes_per_second: Mapping[int, float]

    def line(self) -> str:
        reads = ", ".join(
            f"{rate / 1e9:.1f} GB/s on {threads} thread{'s' if threads != 1 else ''}"
            for threads, rate in self.read_bytes_per_second.items()
        )
        versions = ", ".join(f"{name} {found}" for name, found in self.versions.items())
        return (
            f"{self.date}: {self.cpu}, {self.cores:g} cores, {format_bytes(self.memory_bytes)}, "
            f"reads {reads}, load before {self.load_before:.1f}; {versions}; {self.command}"
        )


@dataclass(frozen=True)
class Reading:
    """Bandwidths by threads, and what the machine was busy with before."""

    bytes_per_second: Mapping[int, float]
    load_before: float


def read_bandwidths() -> Reading:
    """Bytes per second that 1 and `THREADS` threads read, each in a fresh process."""
    load, found = getloadavg()[0], {}
    for threads in sorted({1, THREADS}):
        command = [sys.executable, "-m", "benchmarks.bandwidth", str(threads)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        found[threads] = float(json.loads(done.stdout)["bytes_per_second"])
    return Reading(found, load)


def describe(argv: Sequence[str], before: Reading) -> Machine:
    """After a run. The machine may have been busy at the start: the bound is the most of both."""
    again = read_bandwidths().bytes_per_second
    return Machine(
        date=date.today().isoformat(),
        command=shlex.join(["python", *argv]),
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory_bytes=memory_limit_bytes(),
        load_before=before.load_before,
        versions={name: found for name in _PACKAGES if (found := _version(name))},
        read_bytes_per_second={
            n: max(rate, again[n]) for n, rate in before.bytes_per_second.items()
        },
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
