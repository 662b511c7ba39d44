"""Seconds of a collective by ring formulas.

S is the full array in bytes: what an all-reduce reduces, an all-gather returns, a
reduce-scatter takes in. B is the bytes per second that one rank sends.
"""

from __future__ import annotations

from parallel.errors import HardwareError, did_you_mean

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "send", "all_to_all")


def check_operation(operation: str) -> None:
    """Raises `HardwareError` for an operation without a formula."""
    if operation not in OPERATIONS:
        raise HardwareError(
            f"unknown collective '{operation}'{did_you_mean(operation, OPERATIONS)}; "
            f"known: {', '.join(OPERATIONS)}"
        )


def ring_hops(operation: str, ranks: int) -> int:
    """How many times the data pass from a rank to the next, one after the other."""
    check_operation(operation)
    if operation == "send":
        return 1
    return (2 if operation == "all_reduce" else 1) * (ranks - 1)


def ring_share(operation: str, ranks: int) -> float:
    """The part of S that one rank sends."""
    check_operation(operation)
    if operation in ("send", "broadcast"):
        return 1.0
    return (2 if operation == "all_reduce" else 1) * (ranks - 1) / ranks


def ring_seconds(
    operation: str,
    full_bytes: float,
    ranks: int,
    base_seconds: float,
    latency_seconds: float,
    bandwidth_bytes_per_second: float,
) -> float:
    """base + hops * latency + share * S / B; nothing for one rank alone."""
    check_operation(operation)
    if ranks < 2:
        return 0.0
    return (
        base_seconds
        + ring_hops(operation, ranks) * latency_seconds
        + ring_share(operation, ranks) * full_bytes / bandwidth_bytes_per_second
    )
