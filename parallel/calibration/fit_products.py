"""A device's efficiencies from measured products (hardware/products.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from parallel.calibration.least_squares import Array, minimise
from parallel.calibration.points import ProductPoint, rounded
from parallel.errors import HardwareError
from parallel.hardware.facts import DeviceType
from parallel.hardware.products import Arithmetic

_SHARPNESS = (1.5, 2.0, 4.0)
"""Of how well memory and arithmetic overlap: the best of them is taken."""
_HELD = 0.1
_OWN = ("compute_efficiency", "serial_seconds")
_SCALING = ("scaling_seconds", "scaling_row_seconds", "scaling_input_bytes", "scaling_output_bytes")


def fit_products(points: Sequence[ProductPoint], device: DeviceType) -> DeviceType:
    """`device` with the efficiencies, launch and latency that `points` show.

    The format with most points (fp8 last) gives the device's own figures; each other format
    gets an entry in `arithmetic`, with the passes that scale it where it is fp8. Raises
    `HardwareError` for points that take no time."""
    if not points:
        return device
    for point in points:
        if min(point.rows, point.columns, point.inner) < 1 or not point.seconds > 0:
            raise HardwareError(f"a product has rows, columns and a time; given: {point}")
    counts = Counter(p.compute for p in points)
    main = max(sorted(counts), key=lambda name: (name != "fp8", counts[name]))
    found = [_fit(points, device, main, sorted(counts.keys() - {main}), s) for s in _SHARPNESS]
    return _plausible(min(found, key=lambda pair: pair[0])[1], main)


def _fit(
    points: Sequence[ProductPoint],
    device: DeviceType,
    main: str,
    others: list[str],
    sharpness: float,
) -> tuple[float, DeviceType]:
    launch = device.launch_seconds or min(p.seconds for p in points) / 2
    serial = device.serial_seconds or 1e-10
    start = [launch, serial, device.memory_efficiency, device.compute_efficiency]
    names = {name: (*_OWN, *(_SCALING if name == "fp8" else ())) for name in others}
    first = {
        "compute_efficiency": device.compute_efficiency,
        "serial_seconds": serial,
        "scaling_seconds": launch,
        "scaling_row_seconds": 1e-9,
        "scaling_input_bytes": 3.0,
        "scaling_output_bytes": 0.5,
    }
    start += [first[field] for name in others for field in names[name]]

    def made(values: Sequence[float]) -> DeviceType:
        rest = iter(values[4:])
        own = {
            name: Arithmetic(**{field: float(next(rest)) for field in names[name]})
            for name in others
        }
        return replace(
            device,
            launch_seconds=float(values[0]),
            serial_seconds=float(values[1]),
            memory_efficiency=float(values[2]),
            compute_efficiency=float(values[3]),
            arithmetic={**{k: v for k, v in device.arithmetic.items() if k != main}, **own},
            overlap_sharpness=sharpness,
        )

    def predict(values: Array) -> list[float]:
        trial = made(list(values))
        return [
            trial.product_seconds(p.rows, p.columns, p.inner, p.weights, p.compute, p.repeated)
            for p in points
        ]

    held = [_HELD] * len(start)
    values, cost = minimise(predict, [p.seconds for p in points], start, held)
    return cost, made(list(values))


def _plausible(device: DeviceType, main: str) -> DeviceType:
    """Efficiencies of 1 at most, figures as short as a file says them.

    A peak that was a rule of thumb gives way to what was reached; a datasheet's doesn't."""
    memory, peaks = device.memory_bandwidth_bytes_per_second, dict(device.flops_per_second)
    reached = {main: device.compute_efficiency}
    reached |= {name: own.compute_efficiency for name, own in device.arithmetic.items()}
    if device.estimated or device.kind == "cpu":
        memory = rounded(memory * max(1.0, device.memory_efficiency), 1e9)
        for name, efficiency in reached.items():
            if name in peaks:
                peaks[name] = rounded(peaks[name] * max(1.0, efficiency), 1e12)
    return replace(
        device,
        memory_bandwidth_bytes_per_second=memory,
        flops_per_second=peaks,
        memory_efficiency=min(1.0, rounded(device.memory_efficiency, 1.0)),
        compute_efficiency=min(1.0, rounded(device.compute_efficiency, 1.0)),
        launch_seconds=rounded(device.launch_seconds, 1e-6),
        serial_seconds=rounded(device.serial_seconds, 1e-9),
        arithmetic={name: _short(own) for name, own in device.arithmetic.items()},
    )


def _short(own: Arithmetic) -> Arithmetic:
    return Arithmetic(
        min(1.0, rounded(own.compute_efficiency, 1.0)),
        rounded(own.serial_seconds, 1e-9),
        rounded(own.scaling_seconds, 1e-6),
        rounded(own.scaling_row_seconds, 1e-9),
        rounded(own.scaling_input_bytes, 1.0),
        rounded(own.scaling_output_bytes, 1.0),
    )
