"""Spreads requests over the replicas of a job and hands each token to whoever asked for it.

The leader of each replica connects once it is loaded. Threads do the waiting: one accepts, and each
replica has a reader and a writer. Callbacks run wherever `dispatch` puts them, once per message.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from parallel.errors import RunError
from parallel.requests.placing import Ask, Lengths, QueueFull, check_room, choose
from parallel.requests.prefixes import block_digests
from parallel.requests.replica import Deliver, Pending, Replica, ReplicaStatus
from parallel.requests.types import Request, Sampling, TokenEvent
from parallel.requests.wire import Channel, Listener, Message, PeerLost, event_from_wire

Dispatch = Callable[[Callable[[], None]], object]


def _inline(call: Callable[[], None]) -> None:
    call()


class Router:
    """`on_lost(message)` is called once, when a leader's connection ends unasked. `dispatch` runs
    a batch of deliveries (default: in the reader's thread). `on_queued(seconds)` is told how long
    a request waited for its place, where leaders say so."""

    def __init__(
        self,
        listener: Listener,
        replicas: int,
        on_lost: Callable[[str], None],
        dispatch: Dispatch = _inline,
        on_queued: Callable[[float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._listener, self._count = listener, replicas
        self._on_lost, self._dispatch, self._on_queued = on_lost, dispatch, on_queued
        self._clock = clock
        self._lengths = Lengths()
        self._replicas: dict[int, Replica] = {}
        self._facts: dict[int, dict[str, Any]] = {}
        self._owner: dict[int, Replica] = {}
        self._ids = itertools.count(1)
        self._changed = threading.Condition()
        self._stopping = False
        self._lost: str | None = None
        self._threads: list[threading.Thread] = []
        self._start(self._accept, "router-accept")

    @property
    def facts(self) -> dict[str, Any]:
        """What replica 0 said of itself. Raises `RunError` before it has."""
        with self._changed:
            if 0 not in self._facts:
                raise RunError("replica 0 has not connected yet")
            return self._facts[0]

    def wait_ready(self, timeout: float | None = None) -> bool:
        """True once every replica has connected, False after `timeout` seconds. Raises `RunError`
        when a replica was lost."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._facts) == self._count or self._lost or self._stopping, timeout
            )
            self._refuse_if_lost()
            return len(self._facts) == self._count

    def submit(self, prompt: Sequence[int], sampling: Sampling, deliver: Deliver) -> int:
        """One sequence of one prompt; its id. As `submit_all`, but waits for a place."""
        ((number,),) = self.submit_all([Ask(prompt, [(sampling, deliver)])], wait=True)
        return number

    def submit_all(self, asks: Sequence[Ask], wait: bool = False) -> list[list[int]]:
        """Sends each prompt to the replica that is likely done first, with as many sequences as the
        others have, or none of them. Whoever stands beside a sampling gets that sequence's events,
        the last with a `finish_reason`. Returns ids.

        Raises `QueueFull` unless there is a place for all (or it shall `wait` for one),
        `RequestError` when there never is, `RunError` when a replica is lost."""
        size = len(asks[0].parts)
        block_tokens = self._block_tokens
        digests = [block_digests(a.prompt, block_tokens) if block_tokens else [] for a in asks]
        with self._changed:
            self._await_places(len(asks), size, wait)
            return [self._send(a, size, d) for a, d in zip(asks, digests, strict=True)]

    @property
    def _block_tokens(self) -> int:
        """0 unless it matters who has which prefix."""
        with self._changed:
            facts = self._facts.get(0, {}) if self._count > 1 else {}
            return int(facts.get("block_tokens", 0))

    def _await_places(self, asks: int, size: int, wait: bool) -> None:
        while True:
            self._refuse_if_lost()
            if not self._replicas:
                raise RunError("no replica has connected yet")
            try:
                return check_room(self._replicas.values(), asks, size, self._clock())
            except QueueFull:
                if not wait:
                    raise
                self._changed.wait()

    def _send(self, ask: Ask, size: int, digests: Sequence[int]) -> list[int]:
        prompt = tuple(ask.prompt)
        replica, to_compute = choose(
            self._replicas.values(), len(prompt), digests, self._block_tokens, size
        )
        replica.prefixes.note(digests)
        numbers = [next(self._ids) for _ in ask.parts]
        group = numbers[0] if size > 1 else None
        for number, (sampling, deliver) in zip(numbers, ask.parts, strict=True):
            generated = self._lengths.expected(sampling.max_tokens)
            replica.add(number, Pending(deliver, to_compute, generated))
            self._owner[number] = replica
            request = Request(number, prompt, sampling, ask.priority, group)
            replica.post({"type": "submit", **request.to_wire()})
            to_compute = 0  # the others of a group share what the first computes
        return numbers

    def cancel(self, request_id: int) -> None:
        """Asks for the request's end; its last event says 'cancelled'. Ended ones are ignored."""
        with self._changed:
            replica = self._owner.get(request_id)
            if replica is not None:
                replica.post({"type": "cancel", "id": request_id})

    def status(self) -> list[ReplicaStatus]:
        with self._changed:
            return [self._replicas[n].status() for n in sorted(self._replicas)]

    def report(self, timeout: float) -> list[dict[str, Any]]:
        """Each replica's report, in order. Raises `RunError` when one doesn't answer in time."""
        return [answer["body"] for answer in self._ask("report", "report", timeout)]

    def ping(self, timeout: float) -> bool:
        """True when every rank of every replica answered in time."""
        try:
            return len(self._ask("ping", "pong", timeout)) == self._count
        except RunError:
            return False

    def drain(self, timeout: float) -> bool:
        """Waits till all requests have ended; False when some are left after `timeout` seconds."""
        with self._changed:
            for replica in self._replicas.values():
                replica.post({"type": "drain"})
            return self._changed.wait_for(lambda: not self._owner, timeout)

    def stop(self, timeout: float = 5.0) -> None:
        """Tells the leaders to leave, waits for them to close, and ends every thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            for replica in self._replicas.values():
                replica.post({"type": "stop"})
                replica.post(None)
        self._listener.close()
        self._join(timeout)
        with self._changed:
            channels = [r.channel for r in self._replicas.values()]
        for channel in channels:
            channel.close()
        self._join(timeout)

    def _join(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self, target: Callable[..., None], name: str, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                channel = self._listener.accept()
            except PeerLost:
                return
            self._start(self._read, "router-read", channel)

    def _read(self, channel: Channel) -> None:
        """A replica's life: hello, then events and answers till its channel ends."""
        replica = None
        try:
            replica = self._welcome(channel, channel.receive())
            while True:
                self._take(replica, channel.receive())
        except RunError as error:
            self._end(replica, error)
        finally:
            channel.close()

    def _welcome(self, channel: Channel, hello: Message) -> Replica:
        number, facts = hello.get("replica"), hello.get("facts")
        if not isinstance(number, int) or not isinstance(facts, dict):
            raise RunError("its first message was no hello")
        with self._changed:
            if not 0 <= number < self._count or number in self._replicas:
                raise RunError(
                    f"it called itself replica {number}; there are {self._count}, each once"
                )
            replica = Replica.of(number, channel, facts)
            self._replicas[number] = replica
            self._facts[number] = facts
            self._threads.append(replica.start_writer())
            self._changed.notify_all()
        return replica

    def _take(self, replica: Replica, message: Message) -> None:
        kind = message.get("type")
        if kind == "tokens":
            events = [event_from_wire(row) for row in message.get("events", ())]
            self._deliver(replica, events, message.get("status"))
            if self._on_queued is not None:
                for seconds in message.get("queued_seconds", ()):
                    self._on_queued(seconds)
        elif kind in ("report", "pong"):
            with self._changed:
                waiting = replica.questions.pop(kind, None)
            if waiting is not None:
                waiting.set_result(message)

    def _deliver(
        self, replica: Replica, events: Iterable[TokenEvent], told: dict[str, int] | None = None
    ) -> None:
        due: list[tuple[Deliver, TokenEvent]] = []
        with self._changed:
            replica.told = told or replica.told
            ended = False
            for event in events:
                pending = replica.account(event, self._clock())
                if pending is not None:
                    due.append((pending.deliver, event))
                    if event.finish_reason is not None and pending.made_tokens:
                        self._lengths.saw(pending.made_tokens)
                if event.finish_reason is not None:
                    self._owner.pop(event.request_id, None)
                    ended = True
            if ended:
                self._changed.notify_all()

        def hand_over() -> None:
            for deliver, event in due:
                deliver(event)

        if due:
            self._dispatch(hand_over)

    def _ask(self, question: str, answer: str, timeout: float) -> list[Message]:
        """Asks every replica; shares the answer to a question that is already under way."""
        asked: list[Future[Message]] = []
        with self._changed:
            self._refuse_if_lost()
            for number in sorted(self._replicas):
                replica = self._replicas[number]
                if answer not in replica.questions:
                    replica.questions[answer] = Future()
                    replica.post({"type": question})
                asked.append(replica.questions[answer])
        deadline = time.monotonic() + timeout
        try:
            return [f.result(max(0.0, deadline - time.monotonic())) for f in asked]
        except FutureTimeout:
            raise RunError(f"no answer to '{question}' within {timeout:g} s") from None

    def _end(self, replica: Replica | None, error: RunError) -> None:
        """Requests and questions of a replica whose channel ended get an error."""
        with self._changed:
            first = self._lost is None and not self._stopping
            who = "a leader" if replica is None else f"the leader of replica {replica.number}"
            message = f"{who} was lost: {error}"
            if first:
                self._lost = message
            left = list(replica.requests) if replica else []
            questions = list(replica.questions.values()) if replica else []
            self._changed.notify_all()
        if first:  # before the requests: whoever reads their errors then knows why
            self._on_lost(message)
        if replica is not None:
            replica.post(None)
            self._deliver(
                replica,
                [TokenEvent(i, -1, finish_reason="error", message=message) for i in left],
            )
        for question in questions:
            question.set_exception(RunError(message))

    def _refuse_if_lost(self) -> None:
        if self._lost is not None:
            raise RunError(self._lost)
        if self._stopping:
            raise RunError("the router was stopped")
