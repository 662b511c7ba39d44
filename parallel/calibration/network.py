"""What a network's collectives take longer in a step than one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from parallel.calibration.overheads import JointPoint
from parallel.calibration.points import rounded
from parallel.hardware.facts import Link

_SUMMED = ("all_reduce", "all_gather")
"""What ranks of a tensor-parallel group call between computing."""


def beside_computing(link: Link, points: Sequence[JointPoint], ranks: int) -> Link:
    """`link` whose collectives start as much later as they do in a step of `ranks`, one on each
    host: one after the other they begin before the one ahead has ended everywhere, and nobody's
    cores are busy. Waiting for late ranks isn't counted."""
    found = [
        (p.seconds - p.muted_seconds - p.waiting_seconds) / p.collectives
        - link.collective_seconds("all_reduce", p.full_bytes, ranks)
        for p in points
        if p.waiting_seconds is not None
    ]
    if not found:
        return link
    later = max(0.0, median(found))
    curves = []
    for name, curve in link.curves:
        if name in _SUMMED:
            bulk = curve.bulk_base_seconds
            curve = replace(
                curve,
                base_seconds=rounded(curve.base_seconds + later, 1e-6),
                bulk_base_seconds=None if bulk is None else rounded(bulk + later, 1e-6),
            )
        curves.append((name, curve))
    return replace(link, curves=tuple(curves))
