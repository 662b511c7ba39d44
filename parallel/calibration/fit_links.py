"""A link's curves from measured collectives (hardware/curve.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from parallel.calibration.curve_family import Family
from parallel.calibration.points import CollectivePoint
from parallel.errors import HardwareError
from parallel.hardware.curve import Curve
from parallel.hardware.facts import Link
from parallel.hardware.interpolation import between
from parallel.hardware.link import CURVES, ONE_SHOT
from parallel.hardware.ring import check_operation, ring_share

_SHARED = {"reduce_scatter": "all_gather", "broadcast": "all_gather"}
"""Operations that share the curve of another: the same traffic, half of an all-reduce."""
_FAMILIES = (("all_reduce", "all_gather"), (ONE_SHOT,), ("all_to_all",), ("send",))
"""A ring's operations differ in their bandwidth alone; the others have starts of their own, and
bandwidths near those of the ring (`_LIKE`) in a group of the same size."""
_LIKE = {ONE_SHOT: ("all_reduce", "all_gather")}
_ELSE_LIKE = ("all_gather", "all_reduce")
_SLOWNESS = {"all_to_all": 20.0}
"""Guesses of what a byte takes longer on the quick way: pairwise sends have no protocol between
the one for few bytes and the one for many."""
_LIMITS = (None, 0.6e6, 1.2e6, 2.5e6, 5e6)
"""Candidates for the most that a one-shot sends."""


def fit_collectives(points: Sequence[CollectivePoint], link: Link) -> Link:
    """`link` with the curves of the operations among `points`, its other curves as they are.

    Raises `HardwareError` for a point that can't be: one rank, no bytes or no time."""
    groups: dict[str, list[CollectivePoint]] = {}
    reached: dict[int, float] = {}
    for point in points:
        check_operation(point.operation)
        if point.ranks < 2 or point.full_bytes <= 0 or not point.seconds > 0:
            raise HardwareError(f"a collective of 2 ranks or more takes bytes and time; {point}")
        name = ONE_SHOT if point.custom else _SHARED.get(point.operation, point.operation)
        groups.setdefault(name, []).append(point)
        sent = ring_share(point.operation, point.ranks) * point.full_bytes
        reached[point.ranks] = max(reached.get(point.ranks, 0.0), sent / point.seconds)
    curves: dict[str, Curve] = {}
    for names in _FAMILIES:
        members = {name: groups[name] for name in names if name in groups}
        if members:
            curves |= _fitted(members, _expected(names[0], reached, curves), link)
    curves = dict(link.curves) | curves
    return replace(link, curves=tuple((name, curves[name]) for name in CURVES if name in curves))


def _expected(
    name: str, reached: Mapping[int, float], curves: Mapping[str, Curve]
) -> dict[int, float]:
    """Bandwidth by group size: as a ring's, else the most that any operation reached."""
    for other in _LIKE.get(name, _ELSE_LIKE):
        if other in curves:
            return {n: between(curves[other].bandwidth_by_ranks, n) for n in reached}
    return dict(reached)


def _fitted(
    members: Mapping[str, list[CollectivePoint]], expected: Mapping[int, float], link: Link
) -> dict[str, Curve]:
    joined = link.kind == "nvlink"
    name = next(iter(members))
    slowness = _SLOWNESS.get(name, 1.5) if joined else 1.5
    direct = joined and name == ONE_SHOT
    chained = name in _FAMILIES[0] or (name == ONE_SHOT and not joined)
    families = [
        Family(members, expected, slowness, direct, chained, limit)
        for limit in (_LIMITS if ONE_SHOT in members else (None,))
    ]
    return min((family.fit() for family in families), key=lambda found: found[0])[1]
