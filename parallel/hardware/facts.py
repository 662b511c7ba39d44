"""What the machines are: device types, links, nodes and clusters.

Peaks are what a datasheet promises; the efficiencies say which part of them a program
reaches. A device's number in `Cluster.devices` is the rank that it serves.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

from parallel.errors import HardwareError
from parallel.hardware.overheads import Overheads
from parallel.hardware.ring import OPERATIONS, check_operation, ring_seconds

DeviceKind = Literal["cpu", "cuda"]
LinkKind = Literal["nvlink", "pcie", "network", "shared_memory", "loopback"]
Launch = Literal["eager", "graph"]
DEVICE_KINDS: tuple[DeviceKind, ...] = ("cpu", "cuda")
LINK_KINDS: tuple[LinkKind, ...] = ("nvlink", "pcie", "network", "shared_memory", "loopback")


FORMAT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


@dataclass(frozen=True)
class DeviceType:
    """One kind of device. `flops_per_second` is the dense peak by precision name."""

    name: str
    kind: DeviceKind
    memory_bytes: int
    memory_bandwidth_bytes_per_second: float
    flops_per_second: Mapping[str, float] = field(hash=False)
    memory_efficiency: float = 1.0
    compute_efficiency: float = 1.0
    launch_seconds: float = 0.0
    """From one kernel's end to the next one's start, at the least."""
    runtime_bytes: int = 0
    """What context and libraries hold before any tensor: an estimate."""
    power_watts: float | None = None
    dollars_per_hour: float | None = None
    threads: float = 1.0
    """Cores that compute for one rank (cpu); below 1 when ranks share a core."""
    estimated: bool = False
    """True when the figures are rules of thumb, neither a datasheet nor a measurement."""
    overheads: Overheads | None = None
    """What this runtime adds to its products there; None where it wasn't calibrated."""

    @property
    def effective_bandwidth_bytes_per_second(self) -> float:
        return self.memory_efficiency * self.memory_bandwidth_bytes_per_second

    def flops_per_second_of(self, precision: str) -> float:
        """The peak; bf16 and fp16 stand in for each other, fp32 for whatever else has no rate
        of its own."""
        for name in (precision, {"bf16": "fp16", "fp16": "bf16"}.get(precision, ""), "fp32"):
            if name in self.flops_per_second:
                return self.flops_per_second[name]
        raise HardwareError(
            f"device type '{self.name}' has no rate for {precision}; "
            f"it has {', '.join(self.flops_per_second)}: add one under 'teraflops'"
        )

    def effective_flops_per_second(self, precision: str) -> float:
        """The rate that large products reach."""
        return self.compute_efficiency * self.flops_per_second_of(precision)

    def operation_seconds(self, moved_bytes: float, flops: float, precision: str) -> float:
        """Roofline of one kernel: the slower of memory and arithmetic, and its launch."""
        return self.launch_seconds + max(
            moved_bytes / self.effective_bandwidth_bytes_per_second,
            flops / self.effective_flops_per_second(precision),
        )

    def product_seconds(
        self, rows: int, columns: int, inner: int, weights: str, compute: str
    ) -> float:
        """A dense product [rows, inner] x [inner, columns], its launch included."""
        into, held = FORMAT_BYTES[compute], FORMAT_BYTES[weights]
        moved = rows * inner * into + inner * columns * held + max(2, into) * rows * columns
        return self.operation_seconds(moved, 2.0 * rows * columns * inner, compute)


@dataclass(frozen=True)
class Link:
    """What joins devices. Bandwidth is what one device sends in one direction."""

    kind: LinkKind
    bandwidth_bytes_per_second: float
    latency_seconds: float
    """One hop from a device to the next."""
    base_seconds: float = 0.0
    """The start of an operation, once."""
    bandwidth_by_ranks: tuple[tuple[int, float], ...] = ()
    """What a group of so many ranks was seen to reach: paths are shared, switches help."""
    operations: tuple[str, ...] = OPERATIONS

    def bandwidth(self, ranks: int) -> float:
        """Bytes per second within a group of `ranks`, interpolated in log-log."""
        points = self.bandwidth_by_ranks
        if not points:
            return self.bandwidth_bytes_per_second
        for (n0, b0), (n1, b1) in pairwise(points):
            if n0 <= ranks <= n1:
                part = math.log(ranks / n0) / math.log(n1 / n0)
                return math.exp(math.log(b0) + part * math.log(b1 / b0))
        return points[0][1] if ranks < points[0][0] else points[-1][1]

    def within(self, ranks: int) -> Link:
        """This link as a group of `ranks` sees it."""
        return replace(
            self, bandwidth_bytes_per_second=self.bandwidth(ranks), bandwidth_by_ranks=()
        )

    def collective_seconds(
        self,
        operation: str,
        full_bytes: float,
        ranks: int,
        launch: Launch = "eager",
        custom: bool = False,
    ) -> float:
        return ring_seconds(
            operation,
            full_bytes,
            ranks,
            self.base_seconds,
            self.latency_seconds,
            self.bandwidth(ranks),
        )


@dataclass(frozen=True)
class Node:
    """One host. `general_link` carries the operations that `link` can't."""

    name: str
    devices: tuple[DeviceType, ...]
    link: Link
    cores: int
    host_memory_bytes: int
    general_link: Link | None = None

    def link_for(self, operation: str) -> Link:
        check_operation(operation)
        if operation in self.link.operations:
            return self.link
        if self.general_link is None:
            raise HardwareError(f"node '{self.name}' has no link that can {operation}")
        return self.general_link


@dataclass(frozen=True)
class Device:
    """A device in its place: `index` is its rank, `node` the number of its node."""

    index: int
    node: int
    type: DeviceType


@dataclass(frozen=True)
class Cluster:
    """Nodes and the network between them."""

    name: str
    nodes: tuple[Node, ...]
    network: Link | None = None

    def __post_init__(self) -> None:
        if not any(node.devices for node in self.nodes):
            raise HardwareError(f"cluster '{self.name}' has no device; give at least one node")
        if len(self.nodes) > 1 and self.network is None:
            raise HardwareError(
                f"cluster '{self.name}' has {len(self.nodes)} nodes and no network between "
                "them; add a 'network' link"
            )

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        places = ((n, t) for n, node in enumerate(self.nodes) for t in node.devices)
        return tuple(Device(index, n, t) for index, (n, t) in enumerate(places))

    @property
    def device_count(self) -> int:
        return len(self.devices)

    @property
    def memory_bytes(self) -> int:
        return sum(device.type.memory_bytes for device in self.devices)

    def device(self, rank: int) -> Device:
        """Raises `HardwareError` for a rank that has no device."""
        if not 0 <= rank < self.device_count:
            raise HardwareError(
                f"rank {rank} has no device: cluster '{self.name}' has {self.device_count} "
                f"(ranks 0 to {self.device_count - 1}); take fewer ranks or a larger cluster"
            )
        return self.devices[rank]

    def link(self, rank_a: int, rank_b: int, operation: str = "send") -> Link:
        """What joins two ranks: their node's link, or the network between nodes."""
        a, b = self.device(rank_a), self.device(rank_b)
        if a.node == b.node:
            return self.nodes[a.node].link_for(operation)
        return self._network(1)

    def slowest_link(self, ranks: Sequence[int], operation: str = "all_reduce") -> Link:
        """The link with the least bandwidth on a ring through `ranks` (two or more).

        Its bandwidth is what it reaches for this group. Between nodes every rank brings its
        own share of the network: the bandwidth times the ranks of the node that has fewest."""
        links = self._links(operation, ranks)
        return min(links, key=lambda link: link.bandwidth_bytes_per_second)

    def collective_seconds(
        self,
        operation: str,
        full_bytes: float,
        ranks: Sequence[int],
        launch: Launch = "eager",
        custom: bool = False,
    ) -> float:
        """Seconds of one collective over `ranks`; `full_bytes` is the full array (ring.py)."""
        check_operation(operation)
        if len(ranks) < 2:
            return 0.0
        links = self._links(operation, ranks)
        return ring_seconds(
            operation,
            full_bytes,
            len(ranks),
            max(link.base_seconds for link in links),
            max(link.latency_seconds for link in links),
            min(link.bandwidth_bytes_per_second for link in links),
        )

    def _links(self, operation: str, ranks: Sequence[int]) -> list[Link]:
        members = Counter(self.device(rank).node for rank in ranks)
        links = [
            self.nodes[n].link_for(operation).within(count)
            for n, count in members.items()
            if count > 1
        ]
        if len(members) > 1:
            links.append(self._network(min(members.values())).within(len(ranks)))
        if not links:
            raise HardwareError(f"a link joins at least two ranks; given: {list(ranks)}")
        return links

    def _network(self, streams: int) -> Link:
        if self.network is None:
            raise HardwareError(f"cluster '{self.name}' has no network")
        return replace(
            self.network,
            bandwidth_bytes_per_second=streams * self.network.bandwidth_bytes_per_second,
            bandwidth_by_ranks=tuple((n, streams * b) for n, b in self.network.bandwidth_by_ranks),
        )
