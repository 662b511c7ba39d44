"""What joins devices, and the seconds of a collective on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from parallel.hardware.curve import Curve
from parallel.hardware.interpolation import between
from parallel.hardware.ring import OPERATIONS, check_operation, ring_seconds

LinkKind = Literal["nvlink", "pcie", "network", "shared_memory", "loopback"]
Launch = Literal["eager", "graph"]
LINK_KINDS: tuple[LinkKind, ...] = ("nvlink", "pcie", "network", "shared_memory", "loopback")
ONE_SHOT = "one_shot"
CURVES = (*OPERATIONS, ONE_SHOT)
"""What a curve can be of: an operation of the ring library, or the one-shot all-reduce."""
_LIKE = {"reduce_scatter": "all_gather", "broadcast": "all_gather", "send": "all_to_all"}
"""Whose curve serves an operation that has none of its own: the same traffic, the same kernels."""


@dataclass(frozen=True)
class Link:
    """What joins devices. Bandwidth is what one device sends in one direction.

    An operation with a curve (`curves`, by name) takes its seconds from there; another one
    takes base + hops * latency + share * S / bandwidth (ring.py)."""

    kind: LinkKind
    bandwidth_bytes_per_second: float
    latency_seconds: float = 0.0
    """One hop from a device to the next."""
    base_seconds: float = 0.0
    """The start of an operation, once."""
    bandwidth_by_ranks: tuple[tuple[int, float], ...] = ()
    """What a group of so many ranks was seen to reach: paths are shared, switches help."""
    operations: tuple[str, ...] = OPERATIONS
    curves: tuple[tuple[str, Curve], ...] = ()

    @cached_property
    def _curves(self) -> Mapping[str, Curve]:
        return dict(self.curves)

    def curve(self, operation: str, custom: bool = False) -> Curve | None:
        """The curve that `operation` follows; `custom` asks for the one-shot all-reduce."""
        if custom and operation == "all_reduce" and ONE_SHOT in self._curves:
            return self._curves[ONE_SHOT]
        return self._curves.get(operation) or self._curves.get(_LIKE.get(operation, ""))

    def bandwidth(self, ranks: int) -> float:
        """Bytes per second within a group of `ranks`, between the points in log-log."""
        points = self.bandwidth_by_ranks
        if not points:
            curve = self.curve("all_reduce")
            if curve is None:
                return self.bandwidth_bytes_per_second
            points = curve.bandwidth_by_ranks
        return between(points, ranks)

    def within(self, ranks: int) -> Link:
        """This link as a group of `ranks` sees it, whatever size it is part of."""
        return replace(
            self,
            bandwidth_bytes_per_second=self.bandwidth(ranks),
            bandwidth_by_ranks=(),
            curves=tuple((name, curve.within(ranks)) for name, curve in self.curves),
        )

    def shared_by(self, streams: int) -> Link:
        """This network with so many ranks of a node, each with its own way into it."""
        return replace(
            self,
            bandwidth_bytes_per_second=streams * self.bandwidth_bytes_per_second,
            bandwidth_by_ranks=tuple((n, streams * b) for n, b in self.bandwidth_by_ranks),
            curves=tuple((name, curve.scaled(streams)) for name, curve in self.curves),
        )

    def collective_seconds(
        self,
        operation: str,
        full_bytes: float,
        ranks: int,
        launch: Launch = "eager",
        custom: bool = False,
    ) -> float:
        """Seconds of one collective over `ranks`; `full_bytes` is the full array (ring.py).

        `launch`: called kernel by kernel, or replayed from a graph, which is never slower.
        `custom`: an engine with one-shot all-reduces of its own, its fall-back to a ring for
        large arrays included; a link that has no figures for them takes the ring library's."""
        check_operation(operation)
        curve = self.curve(operation, custom)
        if curve is not None:
            return curve.seconds(operation, full_bytes, ranks, eager=launch == "eager")
        return ring_seconds(
            operation,
            full_bytes,
            ranks,
            self.base_seconds,
            self.latency_seconds,
            self.bandwidth(ranks),
        )
