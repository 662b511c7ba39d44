"""Collectives and products of measured tables, predicted from the shipped device types.

`collectives.csv`: gpu, library, collective, ranks, elements, dtype, microseconds; sizes are
those of the full array, as nccl-tests count them. `gemm.csv`: gpu, engine, dtype, m, n, k,
microseconds; a product was repeated over a few copies of its operands.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.summary import summary
from parallel.calibration.fit import CollectivePoint, ProductPoint
from parallel.errors import TesseraError
from parallel.hardware.device_fields import PRECISIONS
from parallel.hardware.facts import Launch
from parallel.hardware.known import KnownDevice, known_devices
from parallel.hardware.products import FORMAT_BYTES

Json = dict[str, Any]
DEVICES = Path(__file__).parents[2] / "configs" / "clusters" / "devices"
_OPERATIONS = {"alltoall": "all_to_all"}


@dataclass(frozen=True)
class Row:
    """One line of a table; `point` is what it measured."""

    line: int
    gpu: str
    library: str
    key: str
    point: CollectivePoint | ProductPoint


@dataclass(frozen=True)
class Table:
    rows: list[Row]
    skipped: list[Json]


def collectives(path: Path) -> Json:
    """Errors of every row by the links that ship; nothing is fitted."""
    return errors(read_collectives(path), known_devices(DEVICES))


def gemm(path: Path) -> Json:
    """Errors of every row by the device types that ship; nothing is fitted."""
    return errors(read_gemm(path), known_devices(DEVICES))


def read_collectives(path: Path) -> Table:
    def point(row: dict[str, str]) -> CollectivePoint:
        library = row["library"].lower()
        launch: Launch = "graph" if "graph" in library else "eager"
        return CollectivePoint(
            operation=_OPERATIONS.get(row["collective"], row["collective"]),
            ranks=int(row["ranks"]),
            full_bytes=int(row["elements"]) * FORMAT_BYTES.get(row["dtype"], 2),
            launch=launch,
            seconds=1e-6 * float(row["microseconds"]),
            custom="custom" in library,
        )

    return _read(path, "library", point)


def read_gemm(path: Path) -> Table:
    def point(row: dict[str, str]) -> ProductPoint:
        name = row["dtype"]
        if name not in PRECISIONS:
            raise ValueError(f"no products in {name}; known: {', '.join(PRECISIONS)}")
        rows, columns, inner = (int(row[key]) for key in ("m", "n", "k"))
        seconds = 1e-6 * float(row["microseconds"])
        return ProductPoint(rows, columns, inner, name, name, seconds, repeated=True)

    return _read(path, "engine", point)


def _read(
    path: Path, library: str, point: Callable[[dict[str, str]], CollectivePoint | ProductPoint]
) -> Table:
    table = Table([], [])
    with path.open(encoding="utf-8", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), 2):
            try:
                key = ",".join(row.values())
                table.rows.append(Row(line, row["gpu"], row[library], key, point(row)))
            except (KeyError, TypeError, ValueError) as error:
                table.skipped.append({"row": line, "reason": f"can't be read: {error}"})
    return table


def predicted_seconds(point: CollectivePoint | ProductPoint, known: KnownDevice) -> float:
    """Raises `TesseraError` for what the device has no figures for."""
    if isinstance(point, ProductPoint):
        return known.type.product_seconds(
            point.rows, point.columns, point.inner, point.weights, point.compute, point.repeated
        )
    if known.link is None:
        raise TesseraError(f"device type '{known.type.name}' has no link")
    return known.link.collective_seconds(
        point.operation, point.full_bytes, point.ranks, point.launch, point.custom
    )


def errors(table: Table, devices: dict[str, KnownDevice]) -> Json:
    found: list[tuple[Row, float]] = []
    skipped = list(table.skipped)
    for row in table.rows:
        try:
            if row.gpu not in devices:
                raise TesseraError(f"unknown device type '{row.gpu}'")
            seconds = predicted_seconds(row.point, devices[row.gpu])
        except TesseraError as error:
            skipped.append({"row": row.line, "reason": str(error)})
            continue
        found.append((row, abs(seconds - row.point.seconds) / row.point.seconds))
    return {
        **_summary(error for _, error in found),
        "by_gpu": _by(found, lambda row: row.gpu),
        "by_library": _by(found, lambda row: row.library),
        "by_kind": _by(found, _kind),
        "skipped": sorted(skipped, key=lambda entry: entry["row"]),
    }


def _kind(row: Row) -> str:
    point = row.point
    return point.compute if isinstance(point, ProductPoint) else point.operation


def _by(found: Sequence[tuple[Row, float]], key: Callable[[Row], str]) -> Json:
    groups: dict[str, list[float]] = {}
    for row, error in found:
        groups.setdefault(key(row), []).append(error)
    return {name: _summary(groups[name]) for name in sorted(groups)}


def _summary(errors: Iterable[float]) -> Json:
    found = list(errors)
    return {"rows": len(found), **summary(found)}
