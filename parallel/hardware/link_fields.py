"""Links as YAML says them, read and written."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from parallel.errors import HardwareError
from parallel.hardware.curve import Curve
from parallel.hardware.fields import Fields, check_number, in_unit
from parallel.hardware.link import CURVES, LINK_KINDS, Link, LinkKind
from parallel.hardware.ring import OPERATIONS
from parallel.hardware.typical import typical_link

_BY_RANKS = "bandwidth_gb_per_second_by_ranks"
_LINK_KEYS = (
    "kind",
    "bandwidth_gb_per_second",
    _BY_RANKS,
    "latency_microseconds",
    "base_microseconds",
    "operations",
    "curves",
)
_CURVE_NUMBERS = {
    "base_seconds": ("base_microseconds", 1e-6),
    "hop_seconds": ("hop_microseconds", 1e-6),
    "quick_share": ("quick_share", 1.0),
    "bulk_base_seconds": ("bulk_base_microseconds", 1e-6),
    "bulk_hop_seconds": ("bulk_hop_microseconds", 1e-6),
    "ramp_bytes": ("ramp_kb", 1e3),
    "quick_limit_bytes": ("quick_limit_kb", 1e3),
    "host_seconds": ("host_microseconds", 1e-6),
    "copy_bytes_per_second": ("copy_gb_per_second", 1e9),
}
"""Field of `Curve`, its key, and what one of it is worth."""
_DEFAULTS = {f.name: f.default for f in fields(Curve)}
_ABOVE_ZERO = ("quick_share", "quick_limit_bytes", "copy_bytes_per_second")


def read_link(value: object, where: str) -> Link:
    """A `Link` from its mapping. Gigabytes are decimal, per direction and device.

    NVLink and PCIe of which only the bandwidth is given get what is typical of their kind."""
    given = Fields(value, where, _LINK_KEYS)
    kind = cast(LinkKind, given.text("kind", LINK_KINDS))
    bandwidth = 1e9 * given.number("bandwidth_gb_per_second")
    operations = given.texts("operations") or OPERATIONS
    for operation in operations:
        if operation not in OPERATIONS:
            legal = ", ".join(OPERATIONS)
            raise HardwareError(f"{where}.operations: unknown '{operation}'; legal: {legal}")
    figures = [key for key in _LINK_KEYS[2:] if key != "operations" and key in given]
    if not figures and kind in ("nvlink", "pcie"):
        return typical_link(kind, bandwidth, operations)
    curves = _read_curves(given.raw("curves"), f"{where}.curves") if "curves" in given else ()
    latency = given.number("latency_microseconds", 0.0 if curves else None, zero=True)
    return Link(
        kind=kind,
        bandwidth_bytes_per_second=bandwidth,
        latency_seconds=1e-6 * latency,
        base_seconds=1e-6 * given.number("base_microseconds", 0.0, zero=True),
        bandwidth_by_ranks=_read_by_ranks(given) if _BY_RANKS in given else (),
        operations=operations,
        curves=curves,
    )


def _read_by_ranks(given: Fields) -> tuple[tuple[int, float], ...]:
    points = given.numbers(_BY_RANKS)
    for ranks in points:
        if check_number(ranks, f"{given.where}.{_BY_RANKS}") != int(ranks):
            raise HardwareError(f"{given.where}.{_BY_RANKS}: {ranks} is not a number of ranks")
    return tuple(sorted((int(ranks), 1e9 * gb) for ranks, gb in points.items()))


def _read_curves(value: object, where: str) -> tuple[tuple[str, Curve], ...]:
    given = Fields(value, where, CURVES)
    return tuple(
        (name, _read_curve(given.raw(name), f"{where}.{name}")) for name in CURVES if name in given
    )


def _read_curve(value: object, where: str) -> Curve:
    keys = (_BY_RANKS, "direct", *(key for key, _ in _CURVE_NUMBERS.values()))
    given = Fields(value, where, keys)
    numbers: dict[str, Any] = {
        name: unit * given.number(key, zero=name not in _ABOVE_ZERO)
        for name, (key, unit) in _CURVE_NUMBERS.items()
        if key in given
    }
    if "base_seconds" not in numbers:
        raise HardwareError(f"{where}: 'base_microseconds' is missing")
    if _BY_RANKS not in given:
        raise HardwareError(f"{where}: '{_BY_RANKS}' is missing")
    return Curve(_read_by_ranks(given), direct=given.flag("direct"), **numbers)


def link_document(link: Link) -> dict[str, Any]:
    """What `read_link` reads back."""
    document: dict[str, Any] = {
        "kind": link.kind,
        "bandwidth_gb_per_second": in_unit(link.bandwidth_bytes_per_second, 1e9),
        "latency_microseconds": in_unit(link.latency_seconds, 1e-6),
        "base_microseconds": in_unit(link.base_seconds, 1e-6),
    }
    if link.bandwidth_by_ranks:
        document[_BY_RANKS] = _by_ranks(link.bandwidth_by_ranks)
    if link.operations != OPERATIONS:
        document["operations"] = list(link.operations)
    if link.curves:
        document["curves"] = {name: _curve_document(curve) for name, curve in link.curves}
    return document


def _curve_document(curve: Curve) -> dict[str, Any]:
    """Figures that a curve has by default are left out."""
    document: dict[str, Any] = {}
    for name, (key, unit) in _CURVE_NUMBERS.items():
        value = getattr(curve, name)
        if name == "base_seconds" or value != _DEFAULTS[name]:
            document[key] = in_unit(value, unit)
    document[_BY_RANKS] = _by_ranks(curve.bandwidth_by_ranks)
    if curve.direct:
        document["direct"] = True
    return document


def _by_ranks(points: tuple[tuple[int, float], ...]) -> dict[int, float]:
    return {ranks: in_unit(bandwidth, 1e9) for ranks, bandwidth in points}
