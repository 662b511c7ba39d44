"""Median, mean and 90th percentile of relative errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, median
from typing import TypeVar

T = TypeVar("T")


def summary(errors: Sequence[float]) -> dict[str, float]:
    """Of absolute errors; the percentile is the smallest that at least 90 % don't exceed."""
    found = sorted(abs(e) for e in errors)
    if not found:
        return {}
    at = max(0, -(-9 * len(found) // 10) - 1)
    return {"median": median(found), "mean": fmean(found), "p90": found[at]}


def grouped(rows: Sequence[T], figure: Callable[[T], float]) -> dict[str, float]:
    return summary([figure(row) for row in rows])
