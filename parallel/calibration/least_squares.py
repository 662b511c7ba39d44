"""Robust least squares for positive parameters and multiplicative errors; deterministic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_SMALL = 0.03
"""Errors below this share count by their square, larger ones by their size: outliers pull less."""
_FARTHEST = 12.0


def minimise(
    predict: Callable[[Array], Sequence[float]],
    measured: Sequence[float],
    start: Sequence[float],
    held: Sequence[float],
    step: float = 1e-4,
    rounds: int = 80,
) -> tuple[Array, float]:
    """Parameters near the least of Σ |ln predicted - ln measured|, and that cost per point.

    Levenberg-Marquardt over the logarithms, reweighted at each step: nothing becomes negative.
    `predict` gets parameters like `start` (above 0) and says one figure above 0 per point.
    `held` says how firmly each parameter is held to its start: 1 weighs e-fold as half a point.
    `step` of the logarithms gives the slopes: a wide one sees through small jumps of `predict`."""
    first = np.log(np.asarray(start, dtype=float))
    prior = np.asarray(held, dtype=float)
    target = np.log(np.asarray(measured, dtype=float))

    def residuals(z: Array) -> Array:
        logarithms: Array = np.log(np.asarray(predict(np.exp(z)), dtype=float)) - target
        return logarithms

    def cost(r: Array, z: Array) -> float:
        return float(np.hypot(r, _SMALL).sum() + 0.5 * (prior * (z - first) ** 2).sum())

    z, damping = first.copy(), 1e-2
    r = residuals(z)
    best = cost(r, z)
    for _ in range(rounds):
        slopes = np.stack([(residuals(z + move) - r) / step for move in step * np.eye(len(z))], 1)
        weighted = slopes.T / np.hypot(r, _SMALL)
        normal = weighted @ slopes + np.diag(prior)
        gradient = weighted @ r + prior * (z - first)
        gained = 0.0
        for _ in range(8):
            move = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -gradient)
            there = np.clip(z + np.clip(move, -1, 1), first - _FARTHEST, first + _FARTHEST)
            found = residuals(there)
            now = cost(found, there)
            if now < best:
                z, r, gained, best = there, found, best - now, now
                damping = max(damping / 5, 1e-9)
                break
            damping *= 4
        if gained < 1e-7 * max(best, 1e-12):
            break
    return np.exp(z), best / max(len(target), 1)
