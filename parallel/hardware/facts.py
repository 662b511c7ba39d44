"""What the machines are: device types, links, nodes and clusters.

A device's number in `Cluster.devices` is the rank that it serves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from parallel.errors import HardwareError
from parallel.hardware.device_type import DEVICE_KINDS, DeviceKind, DeviceType
from parallel.hardware.link import LINK_KINDS, Launch, Link, LinkKind
from parallel.hardware.ring import check_operation

__all__ = [
    "DEVICE_KINDS",
    "LINK_KINDS",
    "Cluster",
    "Device",
    "DeviceKind",
    "DeviceType",
    "Launch",
    "Link",
    "LinkKind",
    "Node",
]


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
        """Seconds of one collective over `ranks`; `full_bytes` is the full array (ring.py).

        Where several kinds of links carry it, the slowest of them decides. `launch` and `custom`:
        see `Link.collective_seconds`; between nodes there is no one-shot all-reduce."""
        check_operation(operation)
        if len(ranks) < 2:
            return 0.0
        return max(
            link.collective_seconds(operation, full_bytes, len(ranks), launch, custom)
            for link in self._links(operation, ranks)
        )

    def message_seconds(self, size: float, rank_a: int, rank_b: int) -> float:
        """Seconds of `size` bytes from one process to another, over whatever carries sends where
        nothing is shared."""
        a, b = self.device(rank_a).node, self.device(rank_b).node
        node = self.nodes[a]
        link = self._network(1) if a != b else node.general_link or node.link
        return link.within(2).collective_seconds("send", size, 2)

    def _links(self, operation: str, ranks: Sequence[int]) -> list[Link]:
        key = (operation, tuple(ranks))
        if key not in self._joined:
            self._joined[key] = self._find_links(operation, ranks)
        return self._joined[key]

    @cached_property
    def _joined(self) -> dict[tuple[str, tuple[int, ...]], list[Link]]:
        """The links that were asked for: plans ask for the same ones over and over."""
        return {}

    def _find_links(self, operation: str, ranks: Sequence[int]) -> list[Link]:
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
        return self.network.shared_by(streams)
