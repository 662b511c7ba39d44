"""What the router knows of one replica: its channel, what it was sent and what it still owes."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import ceil
from queue import SimpleQueue
from typing import Any

from parallel.requests.prefixes import PrefixMemory
from parallel.requests.types import TokenEvent
from parallel.requests.wire import Channel, Message, PeerLost

Deliver = Callable[[TokenEvent], None]

_RECENT_ENDS = 64
_MOST_RETRY_SECONDS = 60


@dataclass
class Pending:
    """A sequence at a replica, and the work that is likely left: `prompt_tokens` to compute till
    its first token, `left_tokens` to generate (at least 1 till its end)."""

    deliver: Deliver
    prompt_tokens: int
    left_tokens: int
    made_tokens: int = 0

    @property
    def work_tokens(self) -> int:
        return self.prompt_tokens + self.left_tokens

    def advance(self) -> None:
        """One more token came."""
        self.prompt_tokens = 0
        self.made_tokens += 1
        self.left_tokens = max(1, self.left_tokens - 1)


@dataclass(frozen=True)
class ReplicaStatus:
    """`requests` (sequences sent and not ended) and `work_tokens` (likely left to compute) as the
    router counts. The rest as the leader last said: since its start `preemptions`, prompt tokens
    looked up in the prefix cache and those found."""

    replica: int
    running: int
    kv_used_tokens: int
    kv_total_tokens: int
    requests: int
    work_tokens: int
    preemptions: int
    prefix_query_tokens: int
    prefix_hit_tokens: int

    @property
    def waiting(self) -> int:
        """Not yet in the batch, those on their way to the leader included."""
        return max(0, self.requests - self.running)

    @property
    def kv_used_share(self) -> float:
        return self.kv_used_tokens / self.kv_total_tokens if self.kv_total_tokens else 0.0


@dataclass
class Replica:
    """One leader's side. The router's lock guards everything but the outbox. At most `most`
    sequences at once; `prefixes` were sent there lately."""

    number: int
    channel: Channel
    most: int
    prefixes: PrefixMemory
    requests: dict[int, Pending] = field(default_factory=dict)
    questions: dict[str, Future[Message]] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    work_tokens: int = 0
    _ends: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_ENDS))
    _outbox: SimpleQueue[Message | None] = field(default_factory=SimpleQueue)

    @classmethod
    def of(cls, number: int, channel: Channel, facts: dict[str, Any]) -> Replica:
        """`facts` as its leader gave them."""
        memory = PrefixMemory(facts.get("prefix_blocks", 0))
        return cls(number, channel, facts.get("most_sequences", sys.maxsize), memory)

    def start_writer(self) -> threading.Thread:
        """Sends what is posted, so that nobody waits for a leader that is busy computing."""
        thread = threading.Thread(target=self._write, name=f"to-replica-{self.number}", daemon=True)
        thread.start()
        return thread

    def post(self, message: Message | None) -> None:
        """Queues a message; None ends the writer."""
        self._outbox.put(message)

    def places(self, size: int) -> int:
        """How many times `size` more sequences may come now."""
        return max(0, self.most - len(self.requests)) // size

    def most_places(self, size: int) -> int:
        """The same of an idle replica."""
        return self.most // size

    def retry_seconds(self, size: int, now: float) -> int:
        """In how long `size` more sequences may come, at the rate of the last ends; 1 to 60."""
        if not self._ends:
            return 1
        lacking = len(self.requests) + size - self.most
        seconds = lacking * (now - self._ends[0]) / len(self._ends)
        return max(1, min(_MOST_RETRY_SECONDS, ceil(seconds)))

    def add(self, request_id: int, pending: Pending) -> None:
        self.requests[request_id] = pending
        self.work_tokens += pending.work_tokens

    def account(self, event: TokenEvent, now: float) -> Pending | None:
        """Counts an event in; None when nobody asks any more."""
        pending = self.requests.get(event.request_id)
        if pending is None:
            return None
        self.work_tokens -= pending.work_tokens
        if event.token >= 0:
            pending.advance()
        if event.finish_reason is None:
            self.work_tokens += pending.work_tokens
        else:
            del self.requests[event.request_id]
            self._ends.append(now)
        return pending

    def status(self) -> ReplicaStatus:
        told = self.told
        return ReplicaStatus(
            self.number,
            told.get("running", 0),
            told.get("kv_used_tokens", 0),
            told.get("kv_total_tokens", 0),
            len(self.requests),
            self.work_tokens,
            told.get("preemptions", 0),
            told.get("prefix_query_tokens", 0),
            told.get("prefix_hit_tokens", 0),
        )

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self.channel.send(message)
            except PeerLost:
                return  # the reader of this channel sees its end and reports it
