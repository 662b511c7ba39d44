"""A cluster as the mapping that describes it: what `catalogue.read_cluster` reads back."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from parallel.hardware.device_fields import device_document
from parallel.hardware.facts import Cluster, Node
from parallel.hardware.link_fields import link_document
from parallel.units import GIB


def cluster_document(cluster: Cluster) -> dict[str, Any]:
    """Complete in itself, device types written out; the name is its file's."""
    document: dict[str, Any] = {"nodes": [_node_document(node) for node in cluster.nodes]}
    if cluster.network is not None:
        document["network"] = link_document(cluster.network)
    return document


def _node_document(node: Node) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": node.name,
        "devices": [
            {"type": device_document(kind), "count": len(list(devices))}
            for kind, devices in groupby(node.devices)
        ],
        "link": link_document(node.link),
        "cores": node.cores,
        "host_memory_gib": node.host_memory_bytes / GIB,
    }
    if node.general_link is not None:
        document["general_link"] = link_document(node.general_link)
    return document
