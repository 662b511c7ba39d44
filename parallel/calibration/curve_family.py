"""Curves that share their starts and slopes, fitted together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from parallel.calibration.least_squares import Array, minimise
from parallel.calibration.points import CollectivePoint, rounded
from parallel.hardware.curve import Curve
from parallel.hardware.ring import ring_hops

_FEW = 8
"""With fewer points than this a curve has one way only."""
_COPY = 2e12
_HELD, _HELD_BY_SIZE = 0.03, 5.0
"""How firmly a figure is held to its guess, and bandwidths of group sizes to that of the whole."""


@dataclass(frozen=True)
class Family:
    """Operations, by the name of their curve, and what is shared by them.

    `base`, `hop`: the quick way's start. `slowness`: what a byte takes longer on it. `later`,
    `later_hop`: what the bulk way starts after it. Every operation has a bandwidth beside what is
    `expected` in a group of that size, and each size its own share of that, held firmly.
    `direct`: the quick way is one-shot. `chained`: data pass from rank to rank, so that more
    ranks start later."""

    members: Mapping[str, list[CollectivePoint]]
    expected: Mapping[int, float]
    slowness: float
    direct: bool
    chained: bool
    limit_bytes: float | None

    def fit(self) -> tuple[float, dict[str, Curve]]:
        """The cost of a point, and the curves."""
        start = [self._guesses[name] for name in self._shared]
        held = [_HELD] * len(start)
        for sizes in self._sizes.values():
            start += [1.0] * (1 + len(sizes))
            held += [_HELD, *[_HELD_BY_SIZE] * len(sizes)]
        points = [(name, p) for name, members in self.members.items() for p in members]

        def predict(values: Array) -> list[float]:
            curves = self._curves(list(values))
            return [
                curves[name].seconds(p.operation, p.full_bytes, p.ranks, p.launch == "eager")
                for name, p in points
            ]

        values, cost = minimise(predict, [p.seconds for _, p in points], start, held)
        return cost, {name: _short(c) for name, c in self._curves(list(values)).items()}

    def _curves(self, values: Sequence[float]) -> dict[str, Curve]:
        rest = iter(values)
        shared = {name: float(next(rest)) for name in self._shared}
        base, hop = shared["base"], shared.get("hop", 0.0)
        curves = {}
        for name, sizes in self._sizes.items():
            speed = float(next(rest))
            curves[name] = Curve(
                tuple((n, self.expected[n] * speed * float(next(rest))) for n in sizes),
                base,
                hop,
                quick_share=1 / (1 + shared.get("slowness", 0.0)),
                bulk_base_seconds=base + shared["later"] if "later" in shared else None,
                bulk_hop_seconds=hop + shared["later_hop"] if "later_hop" in shared else 0.0,
                ramp_bytes=shared.get("ramp", 0.0),
                quick_limit_bytes=self.limit_bytes,
                direct=self.direct,
                host_seconds=shared.get("host", 0.0),
                copy_bytes_per_second=shared.get("copy"),
            )
        return curves

    @cached_property
    def _sizes(self) -> dict[str, list[int]]:
        return {name: sorted({p.ranks for p in points}) for name, points in self.members.items()}

    @cached_property
    def _shared(self) -> list[str]:
        """The figures that these points can tell apart."""
        points = [p for members in self.members.values() for p in members]
        unused: set[str] = set()
        if len({p.launch for p in points}) < 2:
            unused |= {"host", "copy"}
        if not any(p.custom for p in points):
            unused |= {"copy"}
        if len({p.ranks for p in points}) < 2:
            unused |= {"hop", "later_hop"}
        if len(points) < _FEW:
            unused |= {"slowness", "later", "later_hop", "ramp"}
        return [name for name in self._guesses if name not in unused]

    @cached_property
    def _guesses(self) -> dict[str, float]:
        """Where the fit starts: what the smallest arrays took, and what is usual beside that."""
        points = next(iter(self.members.values()))
        device = [p for p in points if p.launch == "graph"] or points
        operation = device[0].operation
        same = [p for p in device if p.operation == operation]
        small: dict[int, CollectivePoint] = {}
        for p in sorted(same, key=lambda p: p.full_bytes):
            small.setdefault(p.ranks, p)
        few, many = min(small), max(small)
        least, most = small[few].seconds, small[many].seconds
        hops = ring_hops(operation, many) - ring_hops(operation, few)
        hop = max((most - least) / hops if hops and self.chained else 0.0, 0.02 * least)
        base = max(least - hop * ring_hops(operation, few), 0.3 * least)
        eager = [p.seconds for p in points if p.launch == "eager"]
        return {
            "base": base,
            "hop": hop,
            "slowness": self.slowness,
            "later": 2 * base,
            "later_hop": hop,
            "ramp": base * self.expected[few],
            "host": min(eager, default=base),
            "copy": _COPY,
        }


def _short(curve: Curve) -> Curve:
    bulk = curve.bulk_base_seconds
    copy = curve.copy_bytes_per_second
    return replace(
        curve,
        bandwidth_by_ranks=tuple((n, rounded(b, 1e9)) for n, b in curve.bandwidth_by_ranks),
        base_seconds=rounded(curve.base_seconds, 1e-6),
        hop_seconds=rounded(curve.hop_seconds, 1e-6),
        quick_share=rounded(curve.quick_share, 1.0),
        bulk_base_seconds=None if bulk is None else rounded(bulk, 1e-6),
        bulk_hop_seconds=rounded(curve.bulk_hop_seconds, 1e-6),
        ramp_bytes=rounded(curve.ramp_bytes, 1e3),
        host_seconds=rounded(curve.host_seconds, 1e-6),
        copy_bytes_per_second=None if copy is None else rounded(copy, 1e9),
    )
