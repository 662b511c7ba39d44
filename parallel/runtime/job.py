"""One rank's life: mesh, load, warm-up, serve, report, leave.

The leader of each replica runs the engine, the others follow its control channel. Watchdog and
lifeline end a rank whose peers are lost, each with a message that names them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from parallel.collectives.clocks import RankClock
from parallel.collectives.control import ControlChannel
from parallel.collectives.lifeline import Lifeline
from parallel.collectives.mesh import Mesh, MeshOptions
from parallel.collectives.watchdog import Watchdog
from parallel.devices.base import Device
from parallel.instrument.clock import StepClock
from parallel.instrument.ledger import Ledger
from parallel.instrument.spans import Spans
from parallel.planner.plan import Plan
from parallel.report.report import sum_counts, sum_steps
from parallel.requests.wire import connect
from parallel.runtime.engine import Engine, Requests
from parallel.runtime.job_instruments import Instruments, ring_capacity
from parallel.runtime.reporting import (
    Json,
    make_report,
    make_trace,
    predicted_steps,
    rank_report,
)
from parallel.runtime.sequences import StepMessage
from parallel.runtime.warmup import Peak, warm_up
from parallel.runtime.worker import Worker
from parallel.scheduling.scheduler import Scheduler

_LOAD_TIMEOUT = timedelta(hours=12)


class RankJob:
    """Everything that this rank holds, made in order and given back in reverse. The last
    `trace_steps` steps are kept for a trace. `beside_bytes` of the host's memory are a process's
    that serves this rank alone."""

    def __init__(
        self,
        plan: Plan,
        rank: int,
        device: Device,
        options: MeshOptions,
        make_worker: type[Worker] = Worker,
        trace_steps: int = 0,
        beside_bytes: int = 0,
    ):
        self.plan, self.rank, self.device = plan, rank, device
        degrees = plan.layout.degrees
        self.coordinates = degrees.coordinates(rank)
        self.replica = degrees.replica(self.coordinates.dp)
        self.is_leader = rank == self.replica[0]
        self.trace_steps = trace_steps
        layers = len(plan.layout.stage(rank).layers)
        self.ledger = Ledger(spans=Spans(ring_capacity(layers, trace_steps)))
        self.clock = StepClock()
        self.activations = Peak(0, 0)
        self._scheduler: Scheduler | None = None
        # Communicators of NCCL take device memory as they open, and are planned apart.
        context = device.context_bytes()
        self.mesh = Mesh.create(degrees, rank, device, self.ledger, options)
        self.lifeline = Lifeline.open(self.mesh)
        self.watchdog = Watchdog.start(self.mesh, options.timeout_seconds)
        self.control = ControlChannel.open(self.mesh, self.replica)
        self.rank_clock = RankClock.open(self.mesh)
        if device.kind == "cpu":
            # What gloo holds isn't.
            context = device.context_bytes() + beside_bytes
        self.runtime_bytes = context
        self.worker = make_worker(plan, rank, self.mesh, device, self.ledger)
        self.instruments = Instruments(self.worker, device, self.rank_clock, self.runtime_bytes)

    def load(self, advance: Callable[[int], None]) -> None:
        """Ends when all ranks have loaded: hosts read at different speeds, and a collective that
        waits for the slowest would run out of its time. A rank that dies meanwhile ends the job."""
        self.ledger.phase = "load"
        self.worker.load(advance)
        ranks = range(self.plan.layout.degrees.world_size)
        self.mesh.exchange.barrier("loaded", ranks, _LOAD_TIMEOUT)
        self.instruments.memory.event("loaded")

    def warm_up(self, captured: Callable[[int], None] = lambda _: None) -> None:
        """`captured` hears of each graph."""
        self.activations = warm_up(self.worker, self.device, captured)
        self.instruments.warmed_up(self.activations.measured)

    def serve(self, address: tuple[str, int], authkey: bytes, facts: dict[str, Any]) -> None:
        """Until the router says stop. `facts` tell the router what it serves."""
        if not self.is_leader:
            self.follow()
            return
        router = connect(address, authkey)
        try:
            degrees = self.plan.layout.degrees
            hello = {"replica": self.coordinates.dp, "replicas": degrees.dp, "facts": facts}
            router.send({"type": "hello", **hello})
            self.lead(router)
        finally:
            router.close()

    def lead(self, router: Requests) -> Engine:
        """The leader's part, until `router` says stop; then the others' ends too."""
        engine = Engine(
            self.plan, self.worker, self.control, router, self.clock, self.replica_report
        )
        self._scheduler = engine.scheduler
        try:
            engine.run()
        finally:
            self.control.broadcast({"op": "stop"})
        return engine

    def follow(self) -> None:
        follow(self.worker, self.control, self.own_report)

    def own_report(self) -> Json:
        memory = rank_report(self.worker, self.activations, self.runtime_bytes)
        return {**memory, **self.instruments.report()}

    def replica_report(self) -> Json:
        """Gathered by the leader; its ranks answer over the control channel."""
        self.control.broadcast({"op": "report"})
        ranks = [self.own_report(), *self.control.gather()]
        steps = predicted_steps(self.plan, self.clock)
        return make_report(self.plan, ranks, steps, self._scheduler_counts())

    def report(self, occasion: str) -> Json | None:
        """On rank 0 the report of all ranks, None elsewhere. Every rank calls it, outside of
        `serve`, with another word each time."""
        self.rank_clock.measure()
        mine = {
            **self.own_report(),
            "steps": predicted_steps(self.plan, self.clock),
            "scheduler": self._scheduler_counts(),
        }
        entries = self.mesh.collect(f"report/{occasion}", mine)
        if entries is None:
            return None
        steps, counts = ([e[name] for e in entries] for name in ("steps", "scheduler"))
        return make_report(self.plan, entries, sum_steps(steps), sum_counts(counts))

    def _scheduler_counts(self) -> Json:
        """Empty where nothing was led."""
        return {} if self._scheduler is None else asdict(self._scheduler.counts)

    def trace(self) -> Json | None:
        """On rank 0 the trace of the last `trace_steps` steps of all ranks, None elsewhere. Every
        rank calls it once, outside of `serve`."""
        self.rank_clock.measure()
        entries = self.mesh.collect("trace", self.instruments.trace(self.trace_steps))
        return None if entries is None else make_trace(self.plan, entries, self.trace_steps)

    def close(self) -> None:
        self.watchdog.stop()
        self.rank_clock.close()
        self.control.close()
        self.lifeline.close()
        self.mesh.close()


def follow(worker: Worker, control: ControlChannel, own_report: Callable[[], Json]) -> None:
    """The others' part: what the leader says, until it says stop."""
    while (message := control.receive())["op"] != "stop":
        if message["op"] == "step":
            result = worker.run(StepMessage.from_wire(message))
            if worker.samples:
                control.reply(result.to_wire())
        elif message["op"] == "forget":
            worker.sequences.forget(message["left"])
        elif message["op"] == "ping":
            control.reply({"rank": worker.rank})
        elif message["op"] == "report":
            control.reply(own_report())
