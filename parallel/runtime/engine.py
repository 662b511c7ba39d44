"""The leader of a replica: takes requests, schedules and sends steps, returns tokens.

The leader is the replica's rank with tp = pp = 0. It runs the scheduler, broadcasts each step over
the control channel and executes it like every other rank; with a pipeline it goes on to the next
batch while later stages work on this one, and learns the tokens from the last stage's message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from parallel.collectives.control import ControlChannel
from parallel.errors import RequestError
from parallel.instrument.clock import Contexts, Shape, StepClock
from parallel.planner.plan import Plan
from parallel.requests.types import Request, TokenEvent
from parallel.requests.wire import event_to_wire
from parallel.runtime.events import failure, step_events
from parallel.runtime.sequences import StepMessage
from parallel.runtime.worker import StepResult, Worker
from parallel.scheduling.blocks import BlockManager
from parallel.scheduling.scheduler import Batch, Limits, Scheduler

Report = dict[str, Any]

_GLANCE_SECONDS = 0.001
"""How often the leader looks for requests while it waits for tokens."""


class Requests(Protocol):
    """Where requests come from and tokens go: a router's channel, or what behaves like one."""

    def poll(self, timeout: float | None = 0.0) -> bool: ...

    def receive(self) -> dict[str, Any]: ...

    def send(self, message: dict[str, Any]) -> None: ...


class Engine:
    """`collect_report` gathers the replica's report (all its ranks answer)."""

    def __init__(
        self,
        plan: Plan,
        worker: Worker,
        control: ControlChannel,
        router: Requests,
        clock: StepClock,
        collect_report: Callable[[], Report],
    ):
        self.plan, self.worker, self.control, self.router = plan, worker, control, router
        self.clock, self.collect_report = clock, collect_report
        spec, limits = plan.layout.spec, plan.limits
        self._vocabulary = spec.vocabulary
        degrees = plan.layout.degrees
        dp = degrees.coordinates(worker.rank).dp
        self._sampler = degrees.rank(0, degrees.pp - 1, dp)
        self.scheduler = Scheduler(
            BlockManager(plan.blocks, limits.block_tokens, plan.swap_blocks, limits.prefix_cache),
            Limits(
                step_tokens=limits.step_tokens,
                requests=min(limits.requests, limits.step_tokens),
                context_tokens=plan.context_tokens,
                batches=plan.batches,
                queue=limits.most_waiting,
            ),
            spec.eos_token_ids,
        )
        self._in_flight: deque[tuple[int, Batch]] = deque()
        self._serial = 0
        self._fresh: list[tuple[int, int]] = []
        self._left: list[int] = []
        self._results: dict[int, StepResult] = {}
        self._arrived: dict[int, float] = {}
        self._queued_seconds: list[float] = []
        self._stopped = False
        self.reply_seconds = 0.0
        """Spent waiting for the last stage's tokens."""

    def run(self) -> None:
        """Until the router says stop (or goes away)."""
        while not self._stopped:
            self._take_messages()
            if self._stopped:
                break
            self._fill_pipeline()
            if self._in_flight and self._oldest_is_done():
                self._finish_oldest()

    def _take_messages(self) -> None:
        idle = not self._in_flight and self.scheduler.idle
        if idle:
            self._forget_ended()
        while self.router.poll(None if idle else 0.0):
            self._take(self.router.receive())
            idle = False
            if self._stopped:
                return

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "submit":
            self._submit(message)
        elif kind == "cancel":
            event = self.scheduler.cancel(message["id"])
            if event is not None:
                self._arrived.pop(message["id"], None)
                self._leave(message["id"])
                self._send([event])
        elif kind == "report":
            self._settle()
            self.router.send({"type": "report", "body": self.collect_report()})
        elif kind == "ping":
            self._settle()
            self.router.send({"type": "pong", "ranks": self._ping()})
        elif kind == "stop":
            self._settle()
            self._stopped = True

    def _submit(self, message: dict[str, Any]) -> None:
        """What is wrong with a request is answered; it must not reach a rank."""
        try:
            request = Request.from_wire(message)
            self._check_tokens(request.prompt)
            self.scheduler.add(request)
            self._arrived[request.id] = self.clock.now()
        except RequestError as error:
            self._send([failure(message["id"], error)])

    def _check_tokens(self, prompt: Sequence[int]) -> None:
        wrong = [token for token in prompt if not 0 <= token < self._vocabulary]
        if wrong:
            raise RequestError(
                f"the prompt has token id {wrong[0]}; the model knows 0 to {self._vocabulary - 1}",
                param="prompt",
            )

    def _settle(self) -> None:
        """Lets every batch in flight end, so that the control channel carries one thing at once."""
        while self._in_flight:
            self._finish_oldest()

    def _ping(self) -> list[int]:
        self.control.broadcast({"op": "ping"})
        return sorted([self.worker.rank, *(r["rank"] for r in self.control.gather())])

    def _fill_pipeline(self) -> None:
        while len(self._in_flight) < self.plan.batches:
            began = self.clock.now()
            batch = self.scheduler.schedule()
            if batch is None:
                return
            message = StepMessage.of(self._serial, batch, self._fresh, self._left)
            self._fresh, self._left = [], []
            self.clock.start(self._serial, *_shape(message.phase, batch), began)
            self._queued_seconds += [began - self._arrived.pop(s.id) for s in batch.joined]
            self.control.broadcast(message.to_wire())
            result = self.worker.run(message)
            if self.worker.stage.head:
                self._results[self._serial] = result
            self._in_flight.append((self._serial, batch))
            self._serial += 1

    def _finish_oldest(self) -> None:
        serial, batch = self._in_flight.popleft()
        while serial not in self._results:
            self._receive_result()
        choices = self._results.pop(serial).choices
        reasons = self.scheduler.complete(batch, {i: c.token for i, c in choices.items()})
        events = list(step_events(batch, choices, reasons))
        for event in events:
            if event.finish_reason is None:
                self._fresh.append((event.request_id, event.token))
            else:
                self._leave(event.request_id)
        self._send(events)
        self.clock.stop(serial)

    def _oldest_is_done(self) -> bool:
        """Waits for its tokens; while the pipeline has room for another batch, also for messages
        that may make one."""
        serial, _ = self._in_flight[0]
        while serial not in self._results:
            full = len(self._in_flight) == self.plan.batches
            if not full and self.router.poll():
                return False
            if full or self.control.has_reply(self._sampler, _GLANCE_SECONDS):
                self._receive_result()
        return True

    def _receive_result(self) -> None:
        began = self.clock.now()
        reply = self.worker.tracer.awaited("reply", partial(self.control.reply_of, self._sampler))
        result = StepResult.from_wire(reply)
        self.reply_seconds += self.clock.now() - began
        self._results[result.serial] = result

    def _leave(self, request_id: int) -> None:
        if request_id in self.worker.sequences.states:
            self._left.append(request_id)

    def _forget_ended(self) -> None:
        """With no step to say it: nothing of a request stays on a rank that is idle, nor a token of
        one that was cancelled."""
        self._fresh = []
        if self._left:
            left, self._left = self._left, []
            self.control.broadcast({"op": "forget", "left": left})
            self.worker.sequences.forget(left)

    def _send(self, events: list[TokenEvent]) -> None:
        scheduler = self.scheduler
        counts = scheduler.counts
        queued_seconds, self._queued_seconds = self._queued_seconds, []
        self.router.send(
            {
                "type": "tokens",
                "events": [event_to_wire(e) for e in events],
                "queued_seconds": queued_seconds,
                "status": {
                    "running": len(scheduler.running),
                    "waiting": len(scheduler.waiting),
                    "kv_used_tokens": scheduler.used_tokens,
                    "kv_total_tokens": self.plan.kv_cache_tokens,
                    "preemptions": counts.recomputed + counts.swapped,
                    "prefix_query_tokens": counts.prompt_tokens,
                    "prefix_hit_tokens": counts.cached_tokens,
                },
            }
        )


def _shape(phase: str, batch: Batch) -> tuple[Shape, Contexts]:
    tokens = rows = chunks = pairs = cached = 0
    for w in batch.work:
        count = w.count
        tokens += count
        rows += w.samples
        chunks += count > 1
        pairs += count * w.start + count * (count + 1) // 2
        cached += w.start + count
    swapped = len(batch.swapped_out) + len(batch.swapped_in)
    return Shape(phase, tokens, len(batch.work), rows, chunks), Contexts(pairs, cached, swapped)
