"""Seconds of one collective operation on one link: two ways, each a start and a slope.

Libraries move small arrays by a quick way that starts early and wastes bandwidth (NCCL's LL and
LL128, a one-shot all-reduce) and large ones by a bulk way that starts late and uses all of it.
x is what one rank sends, B the bandwidth of a group of that size (docs/hardware.md):

    quick = base + hops * hop + x / (quick_share * B)
    bulk  = bulk_base + hops * bulk_hop + (x + sqrt(x * ramp)) / B
    seconds = (quick^-3 + bulk^-3)^(-1/3), nearly the lesser of the two
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from parallel.hardware.interpolation import between
from parallel.hardware.ring import ring_hops, ring_share

_SHARPNESS = 3.0


@dataclass(frozen=True)
class Curve:
    """One operation on one link. Without `bulk_base_seconds` there is the quick way alone."""

    bandwidth_by_ranks: tuple[tuple[int, float], ...]
    """B in bytes per second of one rank, by the size of the group; at least one."""
    base_seconds: float
    hop_seconds: float = 0.0
    quick_share: float = 1.0
    bulk_base_seconds: float | None = None
    bulk_hop_seconds: float = 0.0
    ramp_bytes: float = 0.0
    """Bytes at which the bulk way reaches half of its bandwidth: pipelines fill slowly."""
    quick_limit_bytes: float | None = None
    """The most that one rank sends by the quick way; None: no limit."""
    direct: bool = False
    """The quick way sends everything to each rank at once (one-shot): (ranks - 1) * S."""
    host_seconds: float = 0.0
    """What an eager call takes the host at least: the device waits for it."""
    copy_bytes_per_second: float | None = None
    """An eager call copies its array first at this rate; None: it doesn't."""

    def seconds(self, operation: str, full_bytes: float, ranks: int, eager: bool) -> float:
        if ranks < 2:
            return 0.0
        time = self._device_seconds(operation, full_bytes, ranks)
        if not eager:
            return time
        if self.copy_bytes_per_second is not None:
            time += full_bytes / self.copy_bytes_per_second
        return _blend(time, self.host_seconds, _SHARPNESS)

    def within(self, ranks: int) -> Curve:
        """As a group of `ranks` sees it, whatever size it is part of."""
        bandwidth = between(self.bandwidth_by_ranks, ranks)
        return replace(self, bandwidth_by_ranks=((ranks, bandwidth),))

    def scaled(self, streams: int) -> Curve:
        """With so many ranks of a node that each bring a bandwidth of their own."""
        points = tuple((n, streams * b) for n, b in self.bandwidth_by_ranks)
        return replace(self, bandwidth_by_ranks=points)

    def _device_seconds(self, operation: str, full_bytes: float, ranks: int) -> float:
        bandwidth = between(self.bandwidth_by_ranks, ranks)
        hops = ranks - 1 if self.direct else ring_hops(operation, ranks)
        sent = ring_share(operation, ranks) * full_bytes
        times_more = ranks / 2 if self.direct else 1.0
        limit = math.inf if self.quick_limit_bytes is None else self.quick_limit_bytes

        def quick(sent: float) -> float:
            moved = times_more * sent / (self.quick_share * bandwidth)
            return self.base_seconds + hops * self.hop_seconds + moved

        if self.bulk_base_seconds is None:
            return quick(sent)
        start = self.bulk_base_seconds + hops * self.bulk_hop_seconds

        def bulk(sent: float) -> float:
            return start + (sent + math.sqrt(sent * self.ramp_bytes)) / bandwidth

        if times_more * sent <= limit:
            return _blend(quick(sent), bulk(sent), -_SHARPNESS)
        most = limit / times_more
        return max(bulk(sent), _blend(quick(most), bulk(most), -_SHARPNESS))


def _blend(a: float, b: float, power: float) -> float:
    """(a^power + b^power)^(1/power): a smooth maximum, or minimum where `power` is negative."""
    low, high = min(a, b), max(a, b)
    if low <= 0.0:
        return high if power > 0 else max(low, 0.0)
    scale = high if power > 0 else low
    return float(scale * ((a / scale) ** power + (b / scale) ** power) ** (1 / power))
