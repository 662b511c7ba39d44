"""Clusters by name or from a file.

A directory of clusters holds `NAME.yaml` for each cluster and `devices/NAME.yaml` for each
device type that they share. A cluster file is complete in itself when it writes its device
types out.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from parallel.errors import HardwareError, did_you_mean
from parallel.hardware.by_ranks import by_ranks
from parallel.hardware.facts import Cluster, DeviceType, Node
from parallel.hardware.fields import Fields, read_yaml
from parallel.hardware.known import KnownDevice, known_devices, read_device
from parallel.hardware.link_fields import read_link
from parallel.hardware.probe import probe_local
from parallel.units import GIB

_CLUSTER_KEYS = ("nodes", "network", "probe", "by_ranks", "calibration")
_NODE_KEYS = ("name", "count", "devices", "link", "general_link", "cores", "host_memory_gib")


def cluster_names(search: Path) -> tuple[str, ...]:
    """The clusters that `search` describes."""
    return tuple(sorted(path.stem for path in search.glob("*.yaml")))


def load_cluster(
    name_or_path: str | Path,
    search: Path,
    ranks: int | None = None,
    known: dict[str, KnownDevice] | None = None,
) -> Cluster:
    """The cluster called so in `search`, or described by a YAML file.

    `ranks` shapes a machine that is probed, or described by the number of ranks: so many share
    it. `known` are the device types of `search`, where they were read before. Raises
    `HardwareError` for an unknown name or a file that isn't as it should be."""
    path = _path(name_or_path, search)
    types = known_devices(search / "devices") if known is None else known
    return read_cluster(read_yaml(path), str(path), types, ranks)


def depends_on_ranks(name_or_path: str | Path, search: Path) -> bool:
    """Whether a cluster is another one for each number of ranks: they share a machine."""
    document = read_yaml(_path(name_or_path, search))
    return isinstance(document, dict) and ("probe" in document or "by_ranks" in document)


def _path(name_or_path: str | Path, search: Path) -> Path:
    word = str(name_or_path)
    names = cluster_names(search)
    if word in names:
        return search / f"{word}.yaml"
    if Path(word).suffix in (".yaml", ".yml") or "/" in word:
        return Path(word)
    raise HardwareError(
        f"unknown cluster '{word}'{did_you_mean(word, names)}; "
        f"known: {', '.join(names)}; or give the path of a YAML file"
    )


def read_cluster(
    value: object, where: str, known: dict[str, KnownDevice], ranks: int | None = None
) -> Cluster:
    """A cluster from its mapping; `where` (a file) names it and starts its error messages.

    `calibration` is for people and passed over."""
    name = Path(where).stem
    fields = Fields(value, where, _CLUSTER_KEYS)
    if "by_ranks" in fields:
        if "nodes" in fields or "network" in fields or "probe" in fields:
            raise HardwareError(f"{where}: 'by_ranks' stands alone, with 'nodes' for each number")
        return by_ranks(fields.raw("by_ranks"), where, ranks, partial(read_cluster, known=known))
    if "probe" in fields:
        if fields.raw("probe") is not True or "nodes" in fields or "network" in fields:
            raise HardwareError(f"{where}: 'probe: true' stands alone; or describe 'nodes'")
        return probe_local(ranks, name=name, known=known)
    entries = fields.raw("nodes")
    if not isinstance(entries, list) or not entries:
        raise HardwareError(f"{where}.nodes: expected a list of nodes, got {entries!r}")
    nodes = tuple(
        node
        for index, entry in enumerate(entries)
        for node in _read_nodes(entry, f"{where}: nodes[{index}]", known)
    )
    network = read_link(fields.raw("network"), f"{where}: network") if "network" in fields else None
    if len(nodes) > 1 and network is None:
        raise HardwareError(f"{where}: {len(nodes)} nodes need a 'network' between them")
    return Cluster(name, nodes, network)


def _read_nodes(value: object, where: str, known: dict[str, KnownDevice]) -> list[Node]:
    """One entry describes `count` equal nodes, numbered when there are several."""
    fields = Fields(value, where, _NODE_KEYS)
    groups = fields.raw("devices")
    if not isinstance(groups, list) or not groups:
        raise HardwareError(f"{where}.devices: expected a list of device groups, got {groups!r}")
    devices: list[DeviceType] = []
    kinds: list[KnownDevice] = []
    for index, group in enumerate(groups):
        at = f"{where}.devices[{index}]"
        entry = Fields(group, at, ("type", "count"))
        kind = _device(entry.raw("type"), f"{at}.type", known)
        kinds.append(kind)
        devices += [kind.type] * entry.count("count")
    if "link" in fields:
        link = read_link(fields.raw("link"), f"{where}.link")
    elif len(kinds) == 1 and kinds[0].link is not None:
        link = kinds[0].link
    else:
        raise HardwareError(f"{where}: 'link' is missing: say what joins the node's devices")
    general = (
        read_link(fields.raw("general_link"), f"{where}.general_link")
        if "general_link" in fields
        else None
    )
    name, count = fields.text("name"), fields.count("count", 1)
    return [
        Node(
            name=name if count == 1 else f"{name}-{number}",
            devices=tuple(devices),
            link=link,
            cores=fields.count("cores"),
            host_memory_bytes=int(GIB * fields.number("host_memory_gib")),
            general_link=general,
        )
        for number in range(count)
    ]


def _device(value: object, where: str, known: dict[str, KnownDevice]) -> KnownDevice:
    if not isinstance(value, str):
        return read_device(value, where)
    if value not in known:
        raise HardwareError(
            f"{where}: unknown device type '{value}'{did_you_mean(value, known)}; "
            f"known: {', '.join(known)}; or write its figures out here"
        )
    return known[value]
