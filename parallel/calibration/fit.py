"""Facts from measurements: the same fit serves any machine and the devices that ship.

Robust, never negative, deterministic; few points suffice, and what none of them decides stays
near where the fit starts.
"""

from __future__ import annotations

from parallel.calibration.fit_links import fit_collectives
from parallel.calibration.fit_products import fit_products
from parallel.calibration.points import (
    CollectivePoint,
    ProductPoint,
    mean_error,
    p90_error,
    relative_errors,
)

__all__ = [
    "CollectivePoint",
    "ProductPoint",
    "fit_collectives",
    "fit_products",
    "mean_error",
    "p90_error",
    "relative_errors",
]
