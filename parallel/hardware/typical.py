"""Links of which only the kind and the datasheet's bandwidth are known."""

from __future__ import annotations

from typing import Literal

from parallel.hardware.curve import Curve
from parallel.hardware.link import Link
from parallel.hardware.ring import OPERATIONS

_MICRO = 1e-6
_SHARES = {
    "nvlink": {
        "all_reduce": ((2, 0.70), (4, 0.80), (8, 0.90)),
        "all_gather": ((2, 0.58), (4, 0.72), (8, 0.78)),
        "all_to_all": ((2, 0.55), (4, 0.64), (8, 0.68)),
    },
    "pcie": {
        "all_reduce": ((2, 0.60), (4, 0.16), (8, 0.045)),
        "all_gather": ((2, 0.57), (4, 0.15), (8, 0.040)),
        "all_to_all": ((2, 0.70), (4, 0.15), (8, 0.040)),
    },
}
"""What a group reaches of the datasheet's bandwidth. On PCIe two ranks share a switch and more
cross the host."""
_RING = {"nvlink": (7.0, 1.0, 0.32, 16.0, 1.8), "pcie": (5.3, 1.0, 0.6, 15.0, 2.0)}
_PAIRS = {"nvlink": (8.0, 0.2, 0.05, 14.0, 0.3), "pcie": (8.8, 0.1, 0.45, 16.0, 0.3)}
"""Start and hop of the quick way in microseconds, its share, start and hop of the bulk way."""
_RAMP_SECONDS = 5e-6
"""A bulk way's ramp: the bytes that its bandwidth moves in this time."""


def typical_link(
    kind: Literal["nvlink", "pcie"],
    bandwidth_bytes_per_second: float,
    operations: tuple[str, ...] = OPERATIONS,
) -> Link:
    """An estimate, in the middle of what was fitted to A100, H100, H200 and B200 (nvlink) and to
    L40S (pcie); docs/hardware.md."""
    curves = []
    for name, shares in _SHARES[kind].items():
        pairs = name == "all_to_all"
        base, hop, quick, bulk, bulk_hop = (_PAIRS if pairs else _RING)[kind]
        by_ranks = tuple((n, share * bandwidth_bytes_per_second) for n, share in shares)
        curve = Curve(
            by_ranks,
            base * _MICRO,
            hop * _MICRO,
            quick_share=quick,
            bulk_base_seconds=bulk * _MICRO,
            bulk_hop_seconds=bulk_hop * _MICRO,
            ramp_bytes=_RAMP_SECONDS * by_ranks[0][1],
        )
        curves.append((name, curve))
    return Link(kind, bandwidth_bytes_per_second, operations=operations, curves=tuple(curves))
