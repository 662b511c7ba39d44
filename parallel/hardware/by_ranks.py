"""A machine described once for each number of ranks that share it: cores, caches and memory bus are
theirs together, so that what one gets depends on how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from parallel.errors import HardwareError
from parallel.hardware.facts import Cluster


class ReadCluster(Protocol):
    def __call__(self, value: object, where: str) -> Cluster: ...


def by_ranks(value: object, where: str, ranks: int | None, read: ReadCluster) -> Cluster:
    """The description for `ranks` (the largest number when None); a number in between takes the
    next larger one's devices. Raises `HardwareError` for more ranks than any description has."""
    at = f"{where}.by_ranks"
    if not isinstance(value, Mapping) or not value:
        raise HardwareError(f"{at}: expected a mapping from numbers of ranks, got {value!r}")
    for key in value:
        if isinstance(key, bool) or not isinstance(key, int) or key < 1:
            raise HardwareError(f"{at}: {key!r} is not a number of ranks")
    counts = sorted(value)
    wanted = counts[-1] if ranks is None else ranks
    found = next((count for count in counts if count >= wanted), None)
    if found is None:
        listed = ", ".join(map(str, counts))
        raise HardwareError(
            f"{where} describes {listed} ranks and {wanted} are asked for; take fewer, or measure "
            f"them: python launch/calibrate.py output=FILE.yaml ranks=[{listed}, {wanted}]"
        )
    entry = value[found]
    if isinstance(entry, Mapping) and "by_ranks" in entry:
        raise HardwareError(f"{at}.{found}: 'by_ranks' can't be within another")
    cluster = replace(read(entry, f"{at}.{found}"), name=_name(where))
    return cluster if found == wanted else _fewer(cluster, wanted, found)


def _name(where: str) -> str:
    return where.rpartition("/")[2].rpartition(".")[0] or where


def _fewer(cluster: Cluster, ranks: int, described: int) -> Cluster:
    """The first of its devices, with the memory of those left out shared among them."""
    nodes, left = [], ranks
    for node in cluster.nodes:
        devices = tuple(
            replace(d, memory_bytes=d.memory_bytes * described // ranks) if d.kind == "cpu" else d
            for d in node.devices[:left]
        )
        left -= len(devices)
        nodes.append(replace(node, devices=devices))
    return replace(cluster, nodes=tuple(nodes))
