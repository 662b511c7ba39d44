"""How a server is: what its processes hold, and what it says of itself."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.processes import Family, resident_bytes
from benchmarks.load.sse import Address, HttpError, request

_GAUGE = re.compile(r"^tessera:(\w+)\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Load:
    """Sums over the replicas; `cache_used` is the largest share."""

    running: float
    waiting: float
    cache_used: float

    @property
    def idle(self) -> bool:
        """Every place and every block is free."""
        return self.running == self.waiting == self.cache_used == 0


@dataclass(frozen=True)
class Vitals:
    """Of all processes together at one time."""

    seconds: float
    resident_bytes: int
    descriptors: int
    threads: int
    load: Load


async def look(family: Family, address: Address) -> Vitals:
    pids = [member.pid for member in family.members()]
    return Vitals(
        seconds=time.monotonic(),
        resident_bytes=sum(map(resident_bytes, pids)),
        descriptors=sum(_entries(pid, "fd") for pid in pids),
        threads=sum(_entries(pid, "task") for pid in pids),
        load=await look_at_load(address),
    )


async def look_at_load(address: Address) -> Load:
    """Raises `HttpError` when the server doesn't say."""
    status, body = await request(address, "GET", "/metrics")
    if status != 200:
        raise HttpError(status, body.decode(errors="replace"))
    return parse_load(body.decode())


def parse_load(text: str) -> Load:
    """Of Prometheus' text form. Raises `ValueError` when a gauge is missing."""
    found: dict[str, list[float]] = {}
    for match in _GAUGE.finditer(text):
        found.setdefault(match[1], []).append(float(match[2]))
    try:
        return Load(
            sum(found["num_requests_running"]),
            sum(found["num_requests_waiting"]),
            max(found["kv_cache_usage_perc"]),
        )
    except KeyError as error:
        raise ValueError(f"the metrics have no {error}") from None


def _entries(pid: int, folder: str) -> int:
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/{folder}").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return 0


@dataclass(frozen=True)
class Trend:
    """A line through points: change per second, and the standard error of that."""

    slope: float
    error: float

    @classmethod
    def of(cls, seconds: Sequence[float], values: Sequence[float]) -> Trend:
        """Ordinary least squares. Raises `ValueError` below three points or at one time alone."""
        count = len(values)
        if count < 3 or len(seconds) != count:
            raise ValueError(f"{len(seconds)} times and {count} values; a trend wants three")
        mean_x, mean_y = sum(seconds) / count, sum(values) / count
        spread = sum((x - mean_x) ** 2 for x in seconds)
        if not spread:
            raise ValueError("all values are of one time")
        slope = (
            sum((x - mean_x) * (y - mean_y) for x, y in zip(seconds, values, strict=True)) / spread
        )
        rest = sum(
            (y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(seconds, values, strict=True)
        )
        return cls(slope, (rest / (count - 2) / spread) ** 0.5)

    def at_most(self, bound: float) -> bool:
        """Whether the slope may be no more than `bound`: two standard errors are allowed."""
        return self.slope - 2 * self.error <= bound
