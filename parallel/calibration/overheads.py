"""From timed layers and steps to what the runtime adds to its products (hardware/overheads.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch

from parallel.calibration.bench import Bench, Timing
from parallel.calibration.points import mean_error, rounded
from parallel.devices.base import Device
from parallel.hardware.overheads import Overheads
from parallel.kernels.sampling import Row, sample
from parallel.requests.types import Sampling

_ROWS, _VOCABULARY = 8, 32768
_FASTEST = 1e15
"""Of a part that costs nothing measurable."""


@dataclass(frozen=True)
class LayerPoint:
    """One layer at one shape of step: what it had to do, and the seconds of its parts. `shapes`
    are (outputs, inputs) of its products."""

    tokens: int
    sequences: int
    elementwise_bytes: float
    cached_bytes: float
    attention_flops: float
    shapes: tuple[tuple[int, int], ...]
    products_seconds: float
    attention_seconds: float
    other_seconds: float


@dataclass(frozen=True)
class StepPoint:
    """What the engine added to a decode of `sequences` beside its layers, head and sampling."""

    sequences: int
    seconds: float


@dataclass(frozen=True)
class JointPoint:
    """A stage of layers run by all ranks of a group: with its `collectives`, without them, and so
    many of them alone, where nobody comes late; each is of `full_bytes`. `waiting_seconds` is what
    clocks say of the waiting in the first: between hosts the rest is the network's."""

    collectives: int
    seconds: float
    muted_seconds: float
    collectives_seconds: float
    full_bytes: int = 0
    waiting_seconds: float | None = None

    @property
    def late_seconds(self) -> float:
        if self.waiting_seconds is not None:
            return self.waiting_seconds
        return self.seconds - self.muted_seconds - self.collectives_seconds


@dataclass(frozen=True)
class WayPoint:
    """Decodes of a full pipeline of all ranks: a step's seconds, with so many of them in flight;
    those of the slowest stage that receives, alone; and those of all stages in turn, the leader's
    host work and the ways of the hidden states through them and back included."""

    stages: int
    in_flight: float
    seconds: float
    receiving_seconds: float
    path_seconds: float


def fit_layers(points: Sequence[LayerPoint]) -> Overheads:
    """Non-negative least squares of relative errors, attention apart from all else."""
    ones = [1.0] * len(points)
    start, per_byte = nonnegative_fit(
        [ones, [p.elementwise_bytes for p in points]], [p.other_seconds for p in points]
    )
    call, sequence, cached, flops = nonnegative_fit(
        [
            ones,
            [float(p.sequences) for p in points],
            [p.cached_bytes for p in points],
            [p.attention_flops for p in points],
        ],
        [p.attention_seconds for p in points],
    )
    return Overheads(
        layer_seconds=rounded(start + call, 1e-6),
        layer_sequence_seconds=rounded(sequence, 1e-6),
        elementwise_bytes_per_second=_rate(per_byte),
        cache_bytes_per_second=_rate(cached),
        attention_flops_per_second=_rate(flops),
    )


def fit_steps(points: Sequence[StepPoint], overheads: Overheads) -> Overheads:
    """`overheads` with the costs of a step and of a sequence in it."""
    start, each = nonnegative_fit(
        [[1.0] * len(points), [float(p.sequences) for p in points]], [p.seconds for p in points]
    )
    return replace(
        overheads, step_seconds=rounded(start, 1e-6), sequence_seconds=rounded(each, 1e-6)
    )


def fit_late(points: Sequence[JointPoint], overheads: Overheads) -> Overheads:
    """`overheads` with what waiting for the last rank costs: what whole stages take beyond their
    computing and their collectives."""
    if not points:
        return overheads
    each, share = nonnegative_fit(
        [[float(p.collectives) for p in points], [p.muted_seconds for p in points]],
        [p.late_seconds for p in points],
        [p.seconds for p in points],
    )
    return replace(overheads, late_seconds=rounded(each, 1e-6), late_share=rounded(share, 1.0))


def fit_ways(points: Sequence[WayPoint], overheads: Overheads) -> Overheads:
    """`overheads` with what receiving costs a stage, the median over the points: a full pipeline
    takes max(in flight · (slowest receiver + way), path + (stages - 1) · way)."""
    if not points:
        return overheads
    found = [
        min(
            p.seconds / p.in_flight - p.receiving_seconds,
            (p.seconds - p.path_seconds) / (p.stages - 1),
        )
        for p in points
    ]
    return replace(overheads, way_seconds=rounded(max(0.0, median(found)), 1e-6))


def layer_error(points: Sequence[LayerPoint], overheads: Overheads) -> float:
    """Mean relative error of the fitted seconds beside products."""
    predicted = [
        overheads.layer(p.sequences, p.elementwise_bytes, p.cached_bytes, p.attention_flops)
        for p in points
    ]
    return mean_error(predicted, [p.attention_seconds + p.other_seconds for p in points])


def nonnegative_fit(
    columns: Sequence[Sequence[float]],
    seconds: Sequence[float],
    scales: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """Coefficients of at least 0 with which the columns add up to `seconds`; errors count beside
    `scales` (default: the seconds themselves): the least squares over all sets of columns that
    come out positive."""
    beside = np.asarray(seconds if scales is None else scales, dtype=np.float64)
    target = np.asarray(seconds, dtype=np.float64) / beside
    matrix = np.asarray(columns, dtype=np.float64).T / beside[:, None]
    scale = np.linalg.norm(matrix, axis=0)
    count, best = matrix.shape[1], np.zeros(matrix.shape[1])
    least = float((target**2).sum())
    for chosen in range(1, 1 << count):
        kept = [i for i in range(count) if chosen >> i & 1 and scale[i] > 0]
        found: Any = np.linalg.lstsq(matrix[:, kept] / scale[kept], target, None)[0]
        if (found < 0).any():
            continue
        error = float(((matrix[:, kept] / scale[kept] @ found - target) ** 2).sum())
        if error < least:
            least, best = error, np.zeros(count)
            best[kept] = found / scale[kept]
    return tuple(float(value) for value in best)


def _rate(seconds_each: float) -> float:
    return min(_FASTEST, rounded(1 / seconds_each, 1e9)) if seconds_each > 0 else _FASTEST


def measure_logits(bench: Bench, device: Device, budget_seconds: float) -> tuple[float, Timing]:
    """Seconds for each logit: what follows the head's product, greedily."""
    local = device.zeros((_ROWS, _VOCABULARY), torch.bfloat16)
    rows = [Row(Sampling(), (), 0)] * _ROWS
    (timing,) = bench.measure([lambda: sample(local.float(), rows)], budget_seconds)
    return timing.seconds / (_ROWS * _VOCABULARY), timing
