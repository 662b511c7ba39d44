"""A cluster with the links that a run's ranks would choose: the plan's times and bytes follow the
runtime's own rule (parallel/collectives/choice.py)."""

from __future__ import annotations

import platform
from dataclasses import replace

from parallel.collectives.choice import (
    RankFacts,
    choose_all_reduce,
    missing_build_tools,
    missing_instructions,
)
from parallel.hardware.facts import Cluster, Node
from parallel.hardware.limits import cpu_flags
from parallel.planner.limits import EngineLimits

_ROOM_BYTES = 1 << 60
"""What /dev/shm has free changes: a plan takes it to be enough, so that all ranks make the same."""


def lacking_here() -> str:
    """What this host misses for shared memory without the native kernels; empty when nothing."""
    return missing_instructions(platform.machine(), cpu_flags()) or missing_build_tools()


def chosen_links(
    cluster: Cluster, limits: EngineLimits, collectives: str = "auto", lacks: str = ""
) -> Cluster:
    """`collectives` as it was asked for; `lacks` as `RankFacts` have it, of all hosts."""
    nodes = (_chosen(node, limits, collectives, lacks) for node in cluster.nodes)
    return replace(cluster, nodes=tuple(nodes))


def without_shared_memory(cluster: Cluster) -> Cluster:
    return chosen_links(cluster, EngineLimits(), "gloo")


def _chosen(node: Node, limits: EngineLimits, collectives: str, lacks: str) -> Node:
    """The node's shared memory keeps the operations of the axes that choose it. What is insisted on
    and can't be had is refused when the ranks say what they find."""
    if node.link.kind != "shared_memory" or node.general_link is None:
        return node
    count = len(node.devices)
    ranks = [
        RankFacts(node.name, range(count), count, _ROOM_BYTES, lacks, native=limits.native(device))
        for device in node.devices
    ]
    asked = "gloo" if collectives == "gloo" else "auto"
    backends = {axis: choose_all_reduce(asked, axis, ranks, ranks)[0] for axis in ("tp", "pp")}
    kept = tuple(
        operation
        for operation in node.link.operations
        if backends["pp" if operation == "send" else "tp"] == "shared_memory"
    )
    if not kept:
        return replace(node, link=node.general_link, general_link=None)
    return replace(node, link=replace(node.link, operations=kept))
