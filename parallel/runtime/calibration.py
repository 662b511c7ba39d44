"""What one rank measures for calibration, together with all others, and what they make of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from parallel.calibration.bench import Bench, Peers, Timing
from parallel.calibration.collectives import (
    GENERAL_OPERATIONS,
    Measured,
    group_sizes,
    make_group,
    measure_eager,
    measure_graph,
)
from parallel.calibration.memory import cold_bytes, measure_read
from parallel.calibration.overheads import WayPoint, measure_logits
from parallel.calibration.products import measure_products
from parallel.calibration.swaps import measure_swaps
from parallel.collectives.channels import start_channels
from parallel.collectives.communicator import Communicator
from parallel.collectives.mesh import Mesh, MeshOptions
from parallel.devices.base import Device
from parallel.hardware.facts import Cluster
from parallel.hardware.probe import hosts_like
from parallel.hardware.writing import cluster_document
from parallel.instrument.ledger import Ledger
from parallel.runtime.fragmentation import measure_fragmentation
from parallel.runtime.job import RankJob
from parallel.runtime.joint_timing import measure_joint
from parallel.runtime.layer_timing import measure_layers
from parallel.runtime.rehearsal import RandomWorker, mesh_along
from parallel.runtime.step_timing import measure_steps, step_plan
from parallel.runtime.way_timing import measure_ways

Json = dict[str, Any]
Advance = Callable[[str, float], None]
SHARES = {
    "memory": 0.03,
    "products": 0.4,
    "logits": 0.01,
    "swaps": 0.01,
    "layers": 0.25,
    "joint": 0.05,
    "ways": 0.05,
    "collectives": 0.15,
    "steps": 0.05,
}
"""Of the time allowed; each takes longer where three rounds do."""


def measure_rank(
    cluster: Cluster,
    ranks: int,
    rank: int,
    device: Device,
    options: MeshOptions,
    budget_seconds: float,
    advance: Advance,
) -> list[Json]:
    """Measures of all ranks, on each of them. `cluster` is this host as it is known before, the
    others are taken to be like it; `advance` is told what is measured, and the share of the whole
    that is done."""
    hosts = hosts_like(cluster, ranks // len(cluster.devices))
    job = RankJob(step_plan(ranks, hosts), rank, device, options, make_worker=RandomWorker)
    try:
        job.load(lambda _: None)
        measures = _Measures(job, cluster, hosts, budget_seconds, advance).all()
        return job.mesh.exchange.collect("calibration/measures", measures)
    finally:
        job.close()


class _Measures:
    def __init__(
        self,
        job: RankJob,
        cluster: Cluster,
        hosts: Cluster,
        budget_seconds: float,
        advance: Advance,
    ):
        self.job, self.cluster, self.device = job, cluster, job.device
        self.hosts = hosts
        self._seconds, self._advance = budget_seconds, advance
        self.peers = Peers(job.mesh.exchange)
        self.node = int(os.environ.get("GROUP_RANK", "0"))
        self.nodes: list[int] = self.peers.gather(self.node)

    def all(self) -> Json:
        steps = measure_steps(self.job, self.peers, self._budget("steps"), self._progress("steps"))
        cold = cold_bytes(self.device, self.nodes.count(self.node))
        bandwidth, read = measure_read(
            self._bench("memory"), self.device, cold, self._budget("memory")
        )
        products = measure_products(
            self._bench("products"), self.device, cold, self._budget("products")
        )
        logit_seconds, logits = measure_logits(
            self._bench("logits"), self.device, self._budget("logits")
        )
        swapped, swaps = measure_swaps(self._bench("swaps"), self.device, self._budget("swaps"))
        layers = measure_layers(
            self.device,
            self.peers,
            self.cluster,
            cold,
            self._budget("layers"),
            self._progress("layers"),
        )
        mesh = self._neighbours()
        apart = mesh is self.job.mesh and len(set(self.nodes)) > 1
        joint = measure_joint(
            mesh,
            self.peers,
            self.hosts,
            cold,
            self._budget("joint"),
            self.job.rank_clock if apart else None,
        )
        self._progress("joint")(1.0)
        ways = self._ways()
        self._progress("ways")(1.0)
        groups = list(self._groups())
        return {
            "node": self.node,
            "machine": cluster_document(self.cluster),
            "bandwidth_bytes_per_second": bandwidth,
            "products": [asdict(p) for p in products.points],
            "plain_product_share": products.plain_share,
            "logit_seconds": logit_seconds,
            "swapped_bytes_per_second": swapped,
            "layers": [asdict(p) for p in layers],
            "joint": [asdict(p) for p in joint],
            "steps": [asdict(p) for p in steps],
            "ways": [asdict(p) for p in ways],
            "collectives": groups,
            "runtime_bytes": self.job.runtime_bytes,
            "fragmentation": measure_fragmentation(
                self.device, mesh_along(self.device), self.cluster
            ),
            "spread": {
                "memory": read.spread,
                "products": _spread(products.timings),
                "logits": logits.spread,
                "swaps": swaps.spread,
                **{f"{g['where']} {g['backend']}": g["spread"] for g in groups},
            },
        }

    def _neighbours(self) -> Mesh:
        """This host's ranks: what ranks wait for each other must not count the network. All ranks
        where each is on a host of its own, which know nothing closer."""
        own = [rank for rank, node in enumerate(self.nodes) if node == self.node]
        counts = {self.nodes.count(node) for node in self.nodes}
        if len(own) == len(self.nodes) or counts != {len(own)} or len(own) == 1:
            return self.job.mesh
        found = None
        for node in sorted(set(self.nodes)):
            ranks = [rank for rank, at in enumerate(self.nodes) if at == node]
            group = make_group(ranks, self.job.rank, self.device)
            found = group or found
        assert found is not None
        return mesh_along(self.device, found.communicator)

    def _ways(self) -> list[WayPoint]:
        world = len(self.nodes)
        if world == 1:
            return []
        stages = self._stages("ways")
        mesh = mesh_along(self.device, stages)
        found = measure_ways(self.job, mesh, self.peers, self.hosts, self._budget("ways"))
        stages.close()
        return found

    @property
    def _in_memory(self) -> bool:
        return self.job.mesh.tp.backend == "shared_memory"

    def _stages(self, purpose: str) -> Communicator:
        """All ranks, as stages that send in the way the runtime would."""
        exchange, ranks = self.job.mesh.exchange, range(len(self.nodes))
        group = make_group(ranks, self.job.rank, self.device, "pp", batches=len(ranks))
        assert group is not None
        if not (self._in_memory and self.device.native):
            return group.communicator
        key = f"calibration/{purpose}"
        channels = start_channels(group.transport, "measured", exchange, ranks, key)
        return Communicator("pp", ranks, self.job.rank, channels, Ledger(), self.device)

    def _groups(self) -> list[Json]:
        """The whole mesh as the runtime made it; then groups within the first node by size, and
        groups of one rank for each node."""
        found: list[Json] = []
        world = len(self.nodes)
        if world < 2:
            self._progress("collectives")(1.0)
            return found
        own = self.nodes.count(0)
        wanted = [("node", list(range(size))) for size in group_sizes(own)]
        firsts = [self.nodes.index(n) for n in range(max(self.nodes) + 1)]
        wanted += [("network", firsts[:size]) for size in group_sizes(len(firsts))]
        share = 1 / (len(wanted) + 2 * self._in_memory)
        if self._in_memory:
            found.append(_group("node", self._shared_memory(share)))
        for where, ranks in wanted:
            found += self._general(where, ranks, share)
            self.peers.align()
        return found

    def _shared_memory(self, share: float) -> Measured:
        """What it carries here: sends as well where stages have channels."""
        budget, tp = share * self._budget("collectives"), self.job.mesh.tp
        bench = self._bench("collectives", share)
        summed = measure_eager(bench, tp, self.device, ("all_reduce", "all_gather"), budget)
        stages = self._stages("sends")
        if stages.backend != tp.backend:
            stages.close()
            return summed
        sent = measure_eager(bench, stages, self.device, ("send",), budget, tp)
        stages.close()
        return Measured(tp.backend, summed.points + sent.points, summed.timings + sent.timings)

    def _general(self, where: str, ranks: list[int], share: float) -> list[Json]:
        group = make_group(ranks, self.job.rank, self.device)
        if group is None:
            return []
        bench = Bench(
            self.device,
            self.peers.among(f"{where} {len(ranks)}", ranks),
            self._progress("collectives", share),
        )
        budget = share * self._budget("collectives")
        found = [
            _group(
                where,
                measure_eager(bench, group.communicator, self.device, GENERAL_OPERATIONS, budget),
            )
        ]
        if self.device.kind == "cuda":
            graph = measure_graph(bench, group, self.device, budget)
            found += [] if graph is None else [_group(where, graph)]
        group.communicator.close()
        return found

    def _budget(self, part: str) -> float:
        return SHARES[part] * self._seconds

    def _bench(self, part: str, share: float = 1.0) -> Bench:
        return Bench(self.device, self.peers, self._progress(part, share))

    def _progress(self, part: str, share: float = 1.0) -> Callable[[float], None]:
        return lambda done: self._advance(part, done * share * SHARES[part])


def _group(where: str, measured: Measured) -> Json:
    return {
        "where": where,
        "backend": measured.backend,
        "points": [asdict(p) for p in measured.points],
        "spread": _spread(measured.timings),
    }


def _spread(timings: list[Timing]) -> float:
    """The mean over the cases."""
    return sum(t.spread for t in timings) / max(len(timings), 1)
