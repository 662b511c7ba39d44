"""What was measured, and how far predictions are from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from parallel.hardware.facts import Launch


@dataclass(frozen=True)
class ProductPoint:
    """A product [rows, inner] x [inner, columns]. `repeated`: the same operands every time, so
    that small ones were found in the cache; otherwise weights came from memory."""

    rows: int
    columns: int
    inner: int
    weights: str
    compute: str
    seconds: float
    repeated: bool = False


@dataclass(frozen=True)
class CollectivePoint:
    """`full_bytes`: of the full array. `custom`: by an engine's one-shot kernels."""

    operation: str
    ranks: int
    full_bytes: int
    launch: Launch
    seconds: float
    custom: bool = False


def relative_errors(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    return [abs(p - m) / m for p, m in zip(predicted, measured, strict=True)]


def mean_error(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Mean of |predicted - measured| / measured."""
    return fmean(relative_errors(predicted, measured))


def p90_error(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """The smallest relative error that at least 90 % of the points don't exceed."""
    errors = sorted(relative_errors(predicted, measured))
    return errors[-(-9 * len(errors) // 10) - 1]


def rounded(value: float, unit: float) -> float:
    """To four digits of `unit`, as a file says it: what is read back is what was fitted."""
    return unit * float(f"{value / unit:.4g}")
