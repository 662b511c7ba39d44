"""Device types as YAML says them, read and written."""

from __future__ import annotations

from typing import Any, cast

from parallel.errors import HardwareError
from parallel.hardware.device_type import DEVICE_KINDS, DeviceKind, DeviceType
from parallel.hardware.fields import Fields, in_unit
from parallel.hardware.overheads import overheads_document, read_overheads
from parallel.hardware.products import Arithmetic
from parallel.units import GIB, MIB

PRECISIONS = ("bf16", "fp16", "fp32", "fp8")
_NUMBERS = {
    "memory_efficiency": ("memory_efficiency", 1.0),
    "compute_efficiency": ("compute_efficiency", 1.0),
    "launch_seconds": ("launch_microseconds", 1e-6),
    "serial_seconds": ("serial_nanoseconds", 1e-9),
    "overlap_sharpness": ("overlap_sharpness", 1.0),
    "cache_bandwidth_bytes_per_second": ("cache_gb_per_second", 1e9),
    "fragmentation": ("fragmentation", 1.0),
    "power_watts": ("power_watts", 1.0),
    "dollars_per_hour": ("dollars_per_hour", 1.0),
    "threads": ("threads", 1.0),
}
"""Field of `DeviceType`, its key, and what one of it is worth. All may be left out."""
_ABOVE_ZERO = ("memory_efficiency", "compute_efficiency", "overlap_sharpness", "threads")
_ARITHMETIC = {
    "serial_seconds": ("serial_nanoseconds", 1e-9),
    "scaling_seconds": ("scaling_microseconds", 1e-6),
    "scaling_row_seconds": ("scaling_row_nanoseconds", 1e-9),
    "scaling_input_bytes": ("scaling_input_bytes", 1.0),
    "scaling_output_bytes": ("scaling_output_bytes", 1.0),
}
DEVICE_KEYS = (
    "name",
    "kind",
    "memory_gib",
    "bandwidth_gb_per_second",
    "teraflops",
    "arithmetic",
    "row_factors",
    "cache_mib",
    "runtime_gib",
    "native_kernels",
    "estimated",
    "overheads",
    *(key for key, _ in _NUMBERS.values()),
)


def read_device_type(fields: Fields, name: str | None = None) -> DeviceType:
    """From a mapping of `DEVICE_KEYS` and perhaps others; `name` stands in for a missing one."""
    flops = fields.numbers("teraflops", PRECISIONS)
    numbers: dict[str, Any] = {
        field: unit
        * fields.number(
            key,
            zero=field not in _ABOVE_ZERO,
            most=1 if field.endswith("efficiency") else float("inf"),
        )
        for field, (key, unit) in _NUMBERS.items()
        if key in fields
    }
    return DeviceType(
        name=name if name is not None and "name" not in fields else fields.text("name"),
        kind=cast(DeviceKind, fields.text("kind", DEVICE_KINDS)),
        memory_bytes=int(GIB * fields.number("memory_gib")),
        memory_bandwidth_bytes_per_second=1e9 * fields.number("bandwidth_gb_per_second"),
        flops_per_second={precision: 1e12 * rate for precision, rate in flops.items()},
        arithmetic=_read_arithmetic(fields) if "arithmetic" in fields else {},
        row_factors=_read_row_factors(fields) if "row_factors" in fields else (),
        cache_bytes=int(MIB * fields.number("cache_mib", 0.0, zero=True)),
        runtime_bytes=int(GIB * fields.number("runtime_gib", 0.0, zero=True)),
        native_kernels=fields.flag("native_kernels"),
        estimated=fields.flag("estimated"),
        overheads=(
            read_overheads(fields.raw("overheads"), f"{fields.where}.overheads")
            if "overheads" in fields
            else None
        ),
        **numbers,
    )


def _read_row_factors(fields: Fields) -> tuple[tuple[int, float], ...]:
    factors = fields.numbers("row_factors")
    for rows in factors:
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise HardwareError(f"{fields.where}.row_factors: {rows!r} is not a number of rows")
    return tuple(sorted(factors.items()))


def _read_arithmetic(fields: Fields) -> dict[str, Arithmetic]:
    where = f"{fields.where}.arithmetic"
    formats = Fields(fields.raw("arithmetic"), where, PRECISIONS)
    found = {}
    for precision in PRECISIONS:
        if precision not in formats:
            continue
        keys = ("compute_efficiency", *(key for key, _ in _ARITHMETIC.values()))
        own = Fields(formats.raw(precision), f"{where}.{precision}", keys)
        found[precision] = Arithmetic(
            own.number("compute_efficiency", most=1),
            **{
                field: unit * own.number(key, 0.0, zero=True)
                for field, (key, unit) in _ARITHMETIC.items()
            },
        )
    return found


def device_document(device: DeviceType) -> dict[str, Any]:
    """What `read_device_type` reads back."""
    document: dict[str, Any] = {
        "name": device.name,
        "kind": device.kind,
        "memory_gib": device.memory_bytes / GIB,
        "bandwidth_gb_per_second": in_unit(device.memory_bandwidth_bytes_per_second, 1e9),
        "teraflops": {name: in_unit(rate, 1e12) for name, rate in device.flops_per_second.items()},
    }
    for field, (key, unit) in _NUMBERS.items():
        value = getattr(device, field)
        if value is not None:
            document[key] = in_unit(value, unit)
    if device.arithmetic:
        document["arithmetic"] = {
            name: {
                "compute_efficiency": own.compute_efficiency,
                **{key: in_unit(getattr(own, f), unit) for f, (key, unit) in _ARITHMETIC.items()},
            }
            for name, own in device.arithmetic.items()
        }
    if device.row_factors:
        document["row_factors"] = dict(device.row_factors)
    document["cache_mib"] = device.cache_bytes / MIB
    document["runtime_gib"] = device.runtime_bytes / GIB
    if device.native_kernels:
        document["native_kernels"] = True
    if device.estimated:
        document["estimated"] = True
    if device.overheads is not None:
        document["overheads"] = overheads_document(device.overheads)
    return document
