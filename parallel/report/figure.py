"""A quantity as it was predicted, beside what it came out as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from parallel.report.report import relative_error


@dataclass(frozen=True)
class Figure:
    """A quantity as it was predicted before the run, and as it came out; None where unknown."""

    predicted: float | None
    measured: float | None = None

    @property
    def best(self) -> float | None:
        """Measured, where it was."""
        return self.predicted if self.measured is None else self.measured

    def to_json(self) -> dict[str, Any]:
        error = relative_error(self.predicted, self.measured)
        return {"predicted": self.predicted, "measured": self.measured, "error": error}

    def minus(self, other: Figure) -> Figure:
        return Figure(
            _difference(self.predicted, other.predicted), _difference(self.measured, other.measured)
        )

    def over(self, other: Figure) -> Figure:
        return Figure(
            _ratio(self.predicted, other.predicted), _ratio(self.measured, other.measured)
        )


def scaled(figure: Figure, factor: float, divisor: float = 1) -> Figure:
    """Times `factor` over `divisor`; whole where all are whole and it comes out even."""

    def scale(value: float | None) -> float | None:
        if value is None:
            return None
        exact = isinstance(value, int) and isinstance(factor, int) and isinstance(divisor, int)
        if exact and divisor and value * factor % divisor == 0:
            return value * factor // divisor
        return value * factor / divisor

    return Figure(scale(figure.predicted), scale(figure.measured))


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b
