"""What a plan asks of a cluster's scheduler: nodes, devices, cores and memory of each node."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.errors import ConfigError
from parallel.planner.plan import Plan
from parallel.units import GIB, MIB

_HOST_BYTES = 4 * GIB
"""Of a rank whose tensors are on its GPU: libraries, pinned buffers, a piece of the checkpoint."""
_SPARE = 1.1


@dataclass(frozen=True)
class Resources:
    """Of each of `nodes` equal nodes. `gpus` is 0 on CPU."""

    nodes: int
    ranks: int
    gpus: int
    cores: int
    memory_bytes: int

    @property
    def memory_mib(self) -> int:
        return -(-self.memory_bytes // MIB)


def resources(plan: Plan, nodes: int | None = None, cores: int | None = None) -> Resources:
    """`nodes`: given, or as many as the plan's ranks lie on; `cores` of a rank. Raises
    `ConfigError` where ranks can't be spread evenly, or a node has too few devices."""
    world = plan.layout.degrees.world_size
    used = len({plan.cluster.device(rank).node for rank in range(world)})
    count = used if nodes is None else nodes
    if count < 1 or world % count:
        raise ConfigError(
            f"{world} ranks can't be spread evenly over {count} nodes; give a number of nodes "
            f"that divides {world}"
        )
    per_node = world // count
    most = max(len(node.devices) for node in plan.cluster.nodes)
    if per_node > most:
        raise ConfigError(
            f"nodes={count} would put {per_node} ranks on each, and a node of {plan.cluster.name} "
            f"has {most} devices; give nodes={-(-world // most)} or more"
        )
    device = plan.cluster.device(0).type
    cuda = device.kind == "cuda"
    swap = plan.limits.swap_gib * GIB
    held = [_HOST_BYTES + swap if cuda else rank.total for rank in plan.memory]
    threads = max(1, round(device.threads))
    return Resources(
        nodes=count,
        ranks=per_node,
        gpus=per_node if cuda else 0,
        cores=per_node * (cores or (4 if cuda else threads)),
        memory_bytes=int(_SPARE * per_node * max(held)),
    )
