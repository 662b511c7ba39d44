"""Products with a weight, in the very form that the runtime's layers call them.

Weights are read from memory, as in a model: each call, whatever its rows, takes the next of several
equal ones that together don't fit into a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import median

import torch

from parallel.calibration.bench import Bench, Timing
from parallel.calibration.fit import ProductPoint
from parallel.devices.base import Device
from parallel.kernels.linear import Linear, Table
from parallel.precision import precision

_MOST_COPIES = 160


@dataclass(frozen=True)
class Sweep:
    """Weights [columns, inner] of one format, each with all `rows`."""

    weights: str
    shapes: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]


CPU_SWEEPS = (
    Sweep(
        "bf16",
        (
            (576, 576),
            (576, 1536),
            (960, 576),
            (3072, 576),
            (1024, 1024),
            (1024, 2816),
            (5632, 1024),
            (4096, 4096),
        ),
        (1, 2, 4, 8, 16, 32, 128, 512),
    ),
    Sweep("fp32", ((1024, 1024), (1024, 2816), (5632, 1024)), (1, 4, 16, 128)),
)
CUDA_SWEEPS = tuple(
    Sweep(
        weights,
        ((1024, 4096), (4096, 4096), (6144, 4096), (4096, 14336), (28672, 4096), (8192, 8192)),
        (1, 4, 16, 64, 256, 1024, 4096),
    )
    for weights in ("bf16", "fp16")
)
TABLES = Sweep("bf16", ((3072, 576), (5632, 1024)), (1, 4, 16))
"""Shapes that are also tried as a table that is looked up as well, as a tied head is: not every
form of a weight can be."""


@dataclass(frozen=True)
class Products:
    """`plain_share`: the speed of tables that are looked up as well beside other weights."""

    points: list[ProductPoint]
    timings: list[Timing]
    plain_share: float


def measure_products(
    bench: Bench, device: Device, cold_bytes: int, budget_seconds: float
) -> Products:
    """`cold_bytes`: more than this rank's share of the last cache."""
    sweeps = CPU_SWEEPS if device.kind == "cpu" else CUDA_SWEEPS
    # All weights lie in the same memory: to touch it can take longer than to measure.
    memory = device.weight((max(cold_bytes, 2 * _largest(sweeps)),), torch.uint8)
    memory.view(torch.bfloat16).fill_(0.01)
    made = [entry for sweep in sweeps for entry in _cases(sweep, device, memory)]
    plain = list(_cases(TABLES, device, memory, table=True)) if device.kind == "cpu" else []
    timings = bench.measure([case for _, case in made + plain], budget_seconds)
    points = [
        ProductPoint(rows, columns, inner, name, name, timing.seconds)
        for ((name, rows, columns, inner), _), timing in zip(made, timings, strict=False)
    ]
    best = {facts: t.seconds for (facts, _), t in zip(made, timings, strict=False)}
    shares = [
        best[facts] / timing.seconds
        for (facts, _), timing in zip(plain, timings[len(made) :], strict=True)
    ]
    return Products(points, timings, min(1.0, median(shares)) if shares else 1.0)


_Facts = tuple[str, int, int, int]


def _largest(sweeps: Sequence[Sweep]) -> int:
    return max(c * i * _dtype(sweep).itemsize for sweep in sweeps for c, i in sweep.shapes)


def _dtype(sweep: Sweep) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, precision(sweep.weights).torch)
    return dtype


def _cases(
    sweep: Sweep, device: Device, memory: torch.Tensor, table: bool = False
) -> Iterator[tuple[_Facts, Callable[[], object]]]:
    dtype = _dtype(sweep)
    for columns, inner in sweep.shapes:
        size = columns * inner * dtype.itemsize
        copies = min(_MOST_COPIES, memory.numel() // size)
        weights = (memory[i * size : (i + 1) * size].view(dtype) for i in range(copies))
        turns = cycle([_linear(device, w.view(columns, inner), table) for w in weights])
        for rows in sweep.rows:
            x = device.empty((rows, inner), dtype).fill_(0.01)
            yield (sweep.weights, rows, columns, inner), _product(turns, x)


def _linear(device: Device, weight: torch.Tensor, table: bool) -> Linear:
    """Packed in place, if at all, it is what it was: all its values are the same."""
    linear = Table(weight) if table else Linear(weight, None)
    linear.pack(device)
    return linear


def _product(turns: Iterator[Linear], x: torch.Tensor) -> Callable[[], object]:
    return lambda: next(turns)(x)
