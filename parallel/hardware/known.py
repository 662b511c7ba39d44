"""Device types and links as YAML says them, and the table of known devices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from parallel.errors import HardwareError
from parallel.hardware.facts import (
    DEVICE_KINDS,
    LINK_KINDS,
    DeviceKind,
    DeviceType,
    Link,
    LinkKind,
)
from parallel.hardware.fields import Fields, check_number, read_yaml
from parallel.hardware.overheads import read_overheads
from parallel.hardware.ring import OPERATIONS
from parallel.units import GIB

PRECISIONS = ("bf16", "fp16", "fp32", "fp8")
_LINK_KEYS = (
    "kind",
    "bandwidth_gb_per_second",
    "bandwidth_gb_per_second_by_ranks",
    "latency_microseconds",
    "base_microseconds",
    "operations",
)
_DEVICE_KEYS = (
    "name",
    "driver_names",
    "kind",
    "memory_gib",
    "bandwidth_gb_per_second",
    "teraflops",
    "memory_efficiency",
    "compute_efficiency",
    "launch_microseconds",
    "runtime_gib",
    "power_watts",
    "dollars_per_hour",
    "threads",
    "overheads",
    "link",
)


@dataclass(frozen=True)
class KnownDevice:
    """A device type, the names that its driver gives it, and the link among its like."""

    type: DeviceType
    driver_names: tuple[str, ...] = ()
    link: Link | None = None


def read_link(value: object, where: str) -> Link:
    """A `Link` from its mapping. Gigabytes are decimal, per direction and device."""
    fields = Fields(value, where, _LINK_KEYS)
    by_ranks: tuple[tuple[int, float], ...] = ()
    if "bandwidth_gb_per_second_by_ranks" in fields:
        key = "bandwidth_gb_per_second_by_ranks"
        points = fields.numbers(key)
        for ranks in points:
            if check_number(ranks, f"{where}.{key}") != int(ranks):
                raise HardwareError(f"{where}.{key}: {ranks} is not a number of ranks")
        by_ranks = tuple(sorted((int(ranks), 1e9 * gb) for ranks, gb in points.items()))
    operations = fields.texts("operations") or OPERATIONS
    for operation in operations:
        if operation not in OPERATIONS:
            legal = ", ".join(OPERATIONS)
            raise HardwareError(f"{where}.operations: unknown '{operation}'; legal: {legal}")
    return Link(
        kind=cast(LinkKind, fields.text("kind", LINK_KINDS)),
        bandwidth_bytes_per_second=1e9 * fields.number("bandwidth_gb_per_second"),
        latency_seconds=1e-6 * fields.number("latency_microseconds", zero=True),
        base_seconds=1e-6 * fields.number("base_microseconds", 0.0, zero=True),
        bandwidth_by_ranks=by_ranks,
        operations=operations,
    )


def read_device(value: object, where: str, name: str | None = None) -> KnownDevice:
    """A device type from its mapping; `name` stands in for a missing `name` key."""
    fields = Fields(value, where, _DEVICE_KEYS)
    flops = fields.numbers("teraflops", PRECISIONS)
    device = DeviceType(
        name=name if name is not None and "name" not in fields else fields.text("name"),
        kind=cast(DeviceKind, fields.text("kind", DEVICE_KINDS)),
        memory_bytes=int(GIB * fields.number("memory_gib")),
        memory_bandwidth_bytes_per_second=1e9 * fields.number("bandwidth_gb_per_second"),
        flops_per_second={precision: 1e12 * rate for precision, rate in flops.items()},
        memory_efficiency=fields.number("memory_efficiency", 1.0, most=1),
        compute_efficiency=fields.number("compute_efficiency", 1.0, most=1),
        launch_seconds=1e-6 * fields.number("launch_microseconds", 0.0, zero=True),
        runtime_bytes=int(GIB * fields.number("runtime_gib", 0.0, zero=True)),
        power_watts=fields.optional_number("power_watts"),
        dollars_per_hour=fields.optional_number("dollars_per_hour"),
        threads=fields.number("threads", 1.0),
        overheads=(
            read_overheads(fields.raw("overheads"), f"{where}.overheads")
            if "overheads" in fields
            else None
        ),
    )
    link = read_link(fields.raw("link"), f"{where}.link") if "link" in fields else None
    return KnownDevice(device, fields.texts("driver_names"), link)


def known_devices(directory: Path) -> dict[str, KnownDevice]:
    """The device types described in `directory`/*.yaml, each by its file's name."""
    return {
        path.stem: read_device(read_yaml(path), str(path), path.stem)
        for path in sorted(directory.glob("*.yaml"))
    }
