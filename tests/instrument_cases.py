"""What ranks of the pool do in the tests of instruments: a traced run, skewed clocks, profilers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode

from parallel.collectives.clocks import RankClock
from parallel.collectives.mesh import Mesh, MeshOptions
from parallel.collectives.ops import BODIES
from parallel.devices.cpu import CpuDevice
from parallel.instrument.ledger import Ledger
from parallel.layout.degrees import Degrees
from parallel.runtime.job import RankJob
from tests.engine_case import MemoryRouter, plan_for

SKEW_NS = 5_000_000_000


def traced(
    rank: int,
    model: str,
    degrees: list[Any],
    requests: list[dict[str, Any]],
    steps: int,
    watch: str = "",
) -> dict[str, Any]:
    """A warm job that runs `requests`; rank 0 has the report and the trace of all. `watch` is the
    tool of torch whose findings each rank adds: `profiler` or `counts`."""
    torch.set_num_threads(1)
    device = CpuDevice(1)
    tp, pp, dp, stage_tp = degrees
    plan = plan_for(model, Degrees(tp, pp, dp, stage_tp and tuple(stage_tp)))
    job = RankJob(plan, rank, device, MeshOptions("gloo", 60.0, plan.batches), trace_steps=steps)
    try:
        job.load(lambda _: None)
        job.warm_up()
        with _watching(watch) as findings:
            if job.is_leader:
                job.lead(MemoryRouter(requests))
            else:
                job.follow()
        return {
            "rows": job.ledger.rows(rank),
            "report": job.report("test"),
            "trace": job.trace(),
            "found": findings,
        }
    finally:
        job.close()


class Opened(TorchDispatchMode):
    """Runs the project's collectives as what they are made of, so that other modes see that."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return BODIES.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def _watching(tool: str) -> Iterator[list[Any]]:
    """Filled at the end: of the profiler names, begins and ends (us) of collectives in the order
    of their begins; of CommDebugMode names and counts."""
    found: list[Any] = []
    if tool == "profiler":
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profiler:
            yield found
        events = sorted(profiler.events() or (), key=lambda e: e.time_range.start)
        found += (
            [e.name, e.time_range.start, e.time_range.end]
            for e in events
            if e.name.startswith(("tessera::", "gloo:"))
        )
    elif tool == "counts":
        with CommDebugMode() as counts, Opened():
            yield found
        found += ([str(op), count] for op, count in counts.get_comm_counts().items())
    else:
        yield found


def skewed_clocks(rank: int) -> dict[str, Any]:
    """Each rank's clock is `SKEW_NS` further ahead than the one before, and has a name of its
    own."""
    mesh = Mesh.create(Degrees(tp=3), rank, CpuDevice(1), Ledger(), MeshOptions("gloo", 60))
    skew = rank * SKEW_NS

    def now() -> int:
        return time.monotonic_ns() + skew

    clock = RankClock.open(mesh, f"clock of {rank}", now)
    clock.measure()
    here = now()
    answer = {
        "errors": [o.error_ns for o in clock.map.offsets],
        "offsets": [o.offset_ns for o in clock.map.offsets],
        "moved": clock.map.common_ns(here) - here,
        "origin": clock.origin_ns,
    }
    clock.close()
    mesh.close()
    return answer
