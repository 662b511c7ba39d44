"""What the caching allocator of a GPU keeps beyond the tensors of a step."""

from __future__ import annotations

from math import ceil

from parallel.collectives.mesh import Mesh
from parallel.devices.base import Device
from parallel.hardware.facts import Cluster
from parallel.instrument.ledger import Ledger
from parallel.layout.degrees import Degrees
from parallel.runtime.rehearsal import Geometry, RandomWorker, random_plan
from parallel.runtime.warmup import measure_peak

_GEOMETRY = Geometry(1024, 16, 4, 2816)
_LAYERS, _VOCABULARY = 2, 32768


def measure_fragmentation(device: Device, mesh: Mesh, cluster: Cluster) -> float | None:
    """As a share of the activations, from the largest batches that a model of random weights may
    have to run; None on CPU, which has no such allocator. `mesh` is of this rank alone."""
    if device.kind == "cpu":
        return None
    plan = random_plan(_GEOMETRY, _LAYERS, _VOCABULARY, Degrees(), cluster)
    worker = RandomWorker(plan, 0, mesh, device, Ledger())
    worker.load(lambda _: None)
    device.release_cached()
    before = device.memory_statistics()
    measure_peak(worker, device)
    after = device.memory_statistics()
    activations = after.peak_allocated_bytes - before.allocated_bytes
    return kept_share(before.reserved_bytes, after.reserved_bytes, activations)


def kept_share(before_bytes: int, after_bytes: int, activation_bytes: int) -> float:
    """Of what the allocator came to reserve for the activations, how much no tensor had: a share
    of them, rounded up to thousandths."""
    beyond = max(0, after_bytes - before_bytes - activation_bytes)
    return ceil(1000 * beyond / activation_bytes) / 1000
