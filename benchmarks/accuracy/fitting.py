"""Devices and links fitted to measured tables with the code that calibrates machines.

    python benchmarks/accuracy/fitting.py DIR

prints what configs/clusters/devices says of each GPU in DIR's `collectives.csv` and `gemm.csv`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import cast

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import yaml  # type: ignore[import-untyped]

from benchmarks.accuracy.kernels import (
    DEVICES,
    Json,
    Row,
    Table,
    errors,
    read_collectives,
    read_gemm,
)
from parallel.calibration.fit import CollectivePoint, ProductPoint, fit_collectives, fit_products
from parallel.hardware.device_fields import device_document
from parallel.hardware.facts import DeviceType, Link, LinkKind
from parallel.hardware.known import KnownDevice, known_devices
from parallel.hardware.link_fields import link_document


def held_out_collectives(path: Path) -> Json:
    """Links fitted to half of the rows, errors of the other half."""
    return _held_out(read_collectives(path))


def held_out_gemm(path: Path) -> Json:
    """Device types fitted to half of the rows, errors of the other half."""
    return _held_out(read_gemm(path))


def first_half(row: Row) -> bool:
    """Which half a row is in depends on what it says alone."""
    return sha256(row.key.encode()).digest()[0] % 2 == 0


def _held_out(table: Table) -> Json:
    fitted = fitted_devices([row for row in table.rows if first_half(row)])
    return errors(Table([row for row in table.rows if not first_half(row)], []), fitted)


def fitted_devices(rows: Sequence[Row]) -> dict[str, KnownDevice]:
    """The shipped types with what `rows` show in place of what was fitted before.

    Links of one kind and bandwidth are the same link, whatever GPU is at its ends."""
    shipped = known_devices(DEVICES)
    messages: dict[tuple[str, float], list[CollectivePoint]] = {}
    products: dict[str, list[ProductPoint]] = {}
    for row in rows:
        if isinstance(row.point, ProductPoint):
            products.setdefault(row.gpu, []).append(row.point)
        elif row.gpu in shipped:
            messages.setdefault(_wires(shipped[row.gpu]), []).append(row.point)
    links = {
        wires: fit_collectives(points, Link(cast(LinkKind, wires[0]), wires[1]))
        for wires, points in messages.items()
    }
    return {
        name: replace(
            known,
            type=fit_products(products.get(name, []), _unfitted(known.type)),
            link=links.get(_wires(known), known.link),
        )
        for name, known in shipped.items()
    }


def _wires(known: KnownDevice) -> tuple[str, float]:
    link = known.link
    return ("none", 0.0) if link is None else (link.kind, link.bandwidth_bytes_per_second)


def _unfitted(device: DeviceType) -> DeviceType:
    """Its datasheet, and rules of thumb for the rest."""
    return replace(
        device,
        memory_efficiency=0.85,
        compute_efficiency=0.75,
        launch_seconds=3e-6,
        serial_seconds=3e-10,
        arithmetic={},
    )


def main() -> int:
    tables = (read_collectives, "collectives.csv"), (read_gemm, "gemm.csv")
    folder = Path(sys.argv[1])
    rows = [row for read, name in tables for row in read(folder / name).rows]
    seen = {row.gpu for row in rows}
    for name, known in fitted_devices(rows).items():
        if name in seen and known.link is not None:
            document = {**device_document(known.type), "link": link_document(known.link)}
            print(yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=98))
    return 0


if __name__ == "__main__":
    sys.exit(main())
