"""Figures between points that were measured."""

from __future__ import annotations

import math
from itertools import pairwise


def between(points: tuple[tuple[int, float], ...], at: float) -> float:
    """The value at `at` in log-log between the points (one at least, in order, above 0); outside
    of them the nearest point's."""
    for (n0, b0), (n1, b1) in pairwise(points):
        if n0 <= at <= n1:
            part = math.log(at / n0) / math.log(n1 / n0)
            return math.exp(math.log(b0) + part * math.log(b1 / b0))
    return points[0][1] if at < points[0][0] else points[-1][1]
