"""What the router knows of one replica: its channel, what it was sent and what it still owes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from parallel.requests.types import TokenEvent
from parallel.requests.wire import Channel, Message, PeerLost

Deliver = Callable[[TokenEvent], None]


@dataclass
class Pending:
    """A request at a replica; `work_tokens` is the most that is left to compute for it."""

    deliver: Deliver
    prompt_tokens: int
    work_tokens: int
    started: bool = False


@dataclass(frozen=True)
class ReplicaStatus:
    """`running`, `waiting` and cache use as its leader last said; the rest as the router counts.
    `unstarted` requests have no token yet; `work_tokens` is the most that is left to compute."""

    replica: int
    running: int
    waiting: int
    kv_used_tokens: int
    kv_total_tokens: int
    requests: int
    unstarted: int
    work_tokens: int


@dataclass
class Replica:
    """One leader's side. The router's lock guards everything but the outbox."""

    number: int
    channel: Channel
    requests: dict[int, Pending] = field(default_factory=dict)
    questions: dict[str, Future[Message]] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    work_tokens: int = 0
    unstarted: int = 0
    _outbox: SimpleQueue[Message | None] = field(default_factory=SimpleQueue)

    def start_writer(self) -> threading.Thread:
        """Sends what is posted, so that nobody waits for a leader that is busy computing."""
        thread = threading.Thread(target=self._write, name=f"to-replica-{self.number}", daemon=True)
        thread.start()
        return thread

    def post(self, message: Message | None) -> None:
        """Queues a message; None ends the writer."""
        self._outbox.put(message)

    def add(self, request_id: int, pending: Pending) -> None:
        self.requests[request_id] = pending
        self.work_tokens += pending.work_tokens
        self.unstarted += 1

    def account(self, event: TokenEvent) -> Deliver | None:
        """Counts an event in; whom to give it to, or None when nobody asks any more."""
        pending = self.requests.get(event.request_id)
        if pending is None:
            return None
        done = 1
        if not pending.started:
            pending.started = True
            self.unstarted -= 1
            done += pending.prompt_tokens
        if event.finish_reason is not None:
            done = pending.work_tokens
            del self.requests[event.request_id]
        done = min(done, pending.work_tokens)
        pending.work_tokens -= done
        self.work_tokens -= done
        return pending.deliver

    def status(self) -> ReplicaStatus:
        told: dict[str, Any] = self.told
        return ReplicaStatus(
            self.number,
            told.get("running", 0),
            told.get("waiting", 0),
            told.get("kv_used_tokens", 0),
            told.get("kv_total_tokens", 0),
            len(self.requests),
            self.unstarted,
            self.work_tokens,
        )

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self.channel.send(message)
            except PeerLost:
                return  # the reader of this channel sees its end and reports it
