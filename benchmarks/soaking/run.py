"""Traffic against one server for a while, and what became of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.load.processes import Family
from benchmarks.load.sse import Address
from benchmarks.soaking.traffic import Tally, Traffic
from benchmarks.soaking.vitals import Load, Trend, Vitals, look, look_at_load

_SETTLE_SECONDS = 60.0
_SPARE_DESCRIPTORS = 16
_SPARE_THREADS = 48
"""The front process may grow its pool of threads to 40; they stay."""
MOST_SHOWN = 10


@dataclass(frozen=True)
class Soaked:
    """`samples` are taken under traffic; `before` and `after` when the server is idle."""

    tally: Tally
    samples: Sequence[Vitals]
    before: Vitals
    after: Vitals

    def memory_trend(self) -> Trend | None:
        """Bytes per second over the last half; None of a run too short to tell."""
        late = self.samples[len(self.samples) // 2 :]
        if len(late) < 3:
            return None
        return Trend.of([s.seconds for s in late], [s.resident_bytes for s in late])

    def faults(self, bytes_per_second: float) -> list[str]:
        """What a sound server doesn't do, in words; memory may grow by no more than that."""
        found = [f"unexpected: {words}" for words in self.tally.unexpected[:MOST_SHOWN]]
        rest = len(self.tally.unexpected) - MOST_SHOWN
        found += [f"and {rest} more like these"] if rest > 0 else []
        load = self.after.load
        if not load.idle:
            found.append(
                f"places are lost: running {load.running:g}, waiting {load.waiting:g}, "
                f"{load.cache_used:.2%} of the cache is used, and no client is left"
            )
        trend = self.memory_trend()
        if trend is not None and not trend.at_most(bytes_per_second):
            found.append(f"resident memory grows by {trend.slope:.0f} ± {trend.error:.0f} B/s")
        for name, before, after, spare in (
            ("descriptors", self.before.descriptors, self.after.descriptors, _SPARE_DESCRIPTORS),
            ("threads", self.before.threads, self.after.threads, _SPARE_THREADS),
        ):
            if after > before + spare:
                found.append(f"{name} grew from {before} to {after}")
        return found


async def soak(
    family: Family,
    address: Address,
    traffic: Traffic,
    clients: int,
    goes_on: Callable[[int], bool],
    sample_seconds: float = 2.0,
    show: Callable[[Vitals, Tally], None] = lambda _, __: None,
) -> Soaked:
    """`clients` act at the same time, one action after the other, while `goes_on(actions begun)`.
    Raises `HttpError` or `OSError` when the server no longer says how it is."""
    before = await look(family, address)
    samples: list[Vitals] = []
    begun = 0

    async def client() -> None:
        nonlocal begun
        while goes_on(begun):
            begun += 1
            await traffic.act()

    async def watch() -> None:
        while True:
            await asyncio.sleep(sample_seconds)
            samples.append(await look(family, address))
            show(samples[-1], traffic.tally)

    watcher = asyncio.create_task(watch())
    try:
        acting = asyncio.gather(*(client() for _ in range(clients)))
        await asyncio.wait((acting, watcher), return_when=asyncio.FIRST_COMPLETED)
        if watcher.done():
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)
            watcher.result()
        await acting
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    await _settled(address)
    return Soaked(traffic.tally, samples, before, await look(family, address))


async def _settled(address: Address) -> Load:
    """The load once nothing runs or waits: those who went away take a step to be freed."""
    end = time.monotonic() + _SETTLE_SECONDS
    load = await look_at_load(address)
    while not load.idle and time.monotonic() < end:
        await asyncio.sleep(0.2)
        load = await look_at_load(address)
    return load


def summary(soaked: Soaked) -> list[str]:
    """What was done and how the server was, in lines."""
    done = ", ".join(f"{name} {count}" for name, count in sorted(soaked.tally.done.items()))
    lines = [f"requests: {done}"]
    for name, values in (
        ("resident MiB", [s.resident_bytes / 2**20 for s in soaked.samples]),
        ("descriptors", [float(s.descriptors) for s in soaked.samples]),
        ("threads", [float(s.threads) for s in soaked.samples]),
        ("free cache %", [100 * (1 - s.load.cache_used) for s in soaked.samples]),
    ):
        if values:
            lines.append(
                f"{name}: {min(values):.0f} to {max(values):.0f}, median {median(values):.0f}"
            )
    trend = soaked.memory_trend()
    if trend is not None:
        per_minute = 60 / 2**20
        lines.append(
            f"memory over the last half: {trend.slope * per_minute:+.2f} ± "
            f"{trend.error * per_minute:.2f} MiB per minute"
        )
    return lines
