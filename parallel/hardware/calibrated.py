"""What a cluster file says of the calibration that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.errors import HardwareError
from parallel.hardware.fields import read_yaml


@dataclass(frozen=True)
class Calibration:
    """`spread` by part: how far the upper quartile of its repeats lies above the lower one;
    `errors` by part: mean relative error of what was fitted."""

    file: str
    date: str | None
    host: str | None
    ranks: int | None
    spread: Mapping[str, float]
    errors: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "date": self.date,
            "host": self.host,
            "ranks": self.ranks,
            "spread": dict(self.spread),
            "errors": dict(self.errors),
        }


def read_calibration(path: Path, ranks: int) -> Calibration | None:
    """Of the description that a plan of `ranks` takes; None for a file that wasn't measured."""
    document = read_yaml(path)
    if not isinstance(document, Mapping) or not isinstance(document.get("calibration"), Mapping):
        return None
    where = f"{path}: calibration"
    notes = dict(document["calibration"])
    counts = document.get("by_ranks")
    if isinstance(counts, Mapping):
        described = min((n for n in counts if n >= ranks), default=max(counts))
        notes |= counts[described].get("calibration", {})
        where = f"{path}: calibration of by_ranks.{described}"
    date = notes.get("date")
    return Calibration(
        str(path.resolve()),
        None if date is None else str(date),
        notes.get("host"),
        notes.get("ranks"),
        _shares(notes, "spread", where),
        _shares(notes, "errors", where),
    )


def _shares(notes: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    """Raises `HardwareError` unless it is a mapping to numbers, or missing."""
    value = notes.get(key, {})
    if not isinstance(value, Mapping):
        raise HardwareError(f"{where}.{key}: expected a mapping to numbers, got {value!r}")
    for part, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise HardwareError(f"{where}.{key}.{part}: expected a number, got {number!r}")
    return {str(part): float(number) for part, number in value.items()}
