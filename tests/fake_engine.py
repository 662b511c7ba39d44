"""A leader without a model: speaks the real wire and repeats the prompt.

Greedy requests repeat it from its start, others from token `seed`; the end of the prompt is the end
of the sequence, unless `ignore_eos` asks for another round. Log-probabilities are -0.5, -1.5, …
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from parallel.requests.types import Sampling, TokenEvent
from parallel.requests.wire import Channel, PeerLost, connect, event_to_wire

EOS = 1
CONTEXT = 256


def make_facts(vocabulary: int, **changed: int) -> dict[str, Any]:
    return {
        "plan": {"tp": 2, "pp": 1, "dp": 1, "kv_cache_tokens": 512},
        "model": "fake",
        "context_tokens": CONTEXT,
        "vocabulary": vocabulary,
        "eos_token_ids": [EOS],
        "most_sequences": 600,
        "block_tokens": 4,
        "prefix_blocks": 128,
        **changed,
    }


@dataclass
class _Running:
    prompt: list[int]
    sampling: Sampling
    cached: int
    made: int = 0

    def next(self, request_id: int) -> TokenEvent:
        event = self._token(request_id)
        return event._replace(cached_tokens=self.cached) if self.made == 1 else event

    def _token(self, request_id: int) -> TokenEvent:
        start = 0 if self.sampling.temperature == 0 else self.sampling.seed
        at, count = self.made, len(self.prompt)
        self.made += 1
        token = self.prompt[(start + at) % count]
        reason = "length" if self.made == self.sampling.max_tokens else None
        if at >= count and not self.sampling.ignore_eos:
            token, reason = EOS, "stop"
        if token in self.sampling.stop_token_ids:
            reason = "stop"
        if self.sampling.logprobs is None:
            return TokenEvent(request_id, token, finish_reason=reason)
        others = [(token, -0.5), (token + 1, -1.5), (token + 2, float("-inf"))]
        top = tuple(others[: self.sampling.logprobs])
        return TokenEvent(request_id, token, -0.5, top, reason)


@dataclass
class FakeEngine:
    """`hold()` stops tokens until `release()`; `die()` ends the connection as a crash would. Of
    each prompt `cached` tokens are said to be cached; `refusal` is its answer to every request."""

    address: tuple[str, int]
    key: bytes
    facts: dict[str, Any]
    replica: int = 0
    replicas: int = 1
    submitted: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    stopped: bool = False
    answers: bool = True
    refusal: str | None = None
    refusal_code: str | None = None
    cached: int = 0
    _held: bool = False
    _steps: int | None = None

    def start(self) -> FakeEngine:
        self._channel = connect(self.address, self.key)
        self._channel.send(
            {
                "type": "hello",
                "replica": self.replica,
                "replicas": self.replicas,
                "facts": self.facts,
            }
        )
        self._running: dict[int, _Running] = {}
        self._thread = threading.Thread(target=self._loop, name="fake-engine")
        self._thread.start()
        return self

    def hold(self, after_steps: int = 0) -> None:
        self._steps = after_steps
        self._held = after_steps == 0

    def release(self) -> None:
        self._steps, self._held = None, False

    def die(self) -> None:
        self._channel.close()
        self._thread.join()

    @property
    def running(self) -> int:
        return len(self._running)

    def wait_for(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < deadline, "what was waited for didn't come"
            time.sleep(0.005)

    def join(self) -> None:
        self._thread.join()

    def _loop(self) -> None:
        try:
            self._serve(self._channel)
        except PeerLost:
            return
        finally:
            self._channel.close()

    def _serve(self, channel: Channel) -> None:
        while not self.stopped:
            busy = bool(self._running) and not self._held
            while channel.poll(0.001 if busy else 0.02):
                self._take(channel, channel.receive())
                if self.stopped:
                    return
            if self._running and not self._held:
                self._step(channel)

    def _step(self, channel: Channel) -> None:
        if self._steps is not None:
            self._steps -= 1
            self._held = self._steps <= 0
        self._send(channel, [r.next(i) for i, r in self._running.items()])

    def _send(self, channel: Channel, events: list[TokenEvent]) -> None:
        for event in events:
            if event.finish_reason is not None:
                self._running.pop(event.request_id, None)
        status = {"running": len(self._running), "waiting": 0}
        status |= {"kv_used_tokens": 128 if self._running else 0, "kv_total_tokens": 512}
        status |= {"preemptions": 2, "prefix_query_tokens": 40, "prefix_hit_tokens": 30}
        rows = [event_to_wire(e) for e in events]
        channel.send({"type": "tokens", "events": rows, "status": status, "queued_seconds": [0.25]})

    def _take(self, channel: Channel, message: dict[str, Any]) -> None:
        kind, number = message["type"], message.get("id", -1)
        if kind == "submit" and self.refusal is not None:
            code = self.refusal_code
            refused = TokenEvent(number, -1, finish_reason="error", message=self.refusal, code=code)
            self._send(channel, [refused])
        elif kind == "submit":
            self.submitted.append(message)
            sampling = Sampling.from_wire(message["sampling"])
            self._running[number] = _Running(message["prompt"], sampling, self.cached)
        elif kind == "cancel" and number in self._running:
            self.cancelled.append(number)
            self._send(channel, [TokenEvent(number, -1, finish_reason="cancelled")])
        elif kind == "ping" and self.answers:
            channel.send({"type": "pong", "ranks": [0, 1]})
        elif kind == "report" and self.answers:
            channel.send({"type": "report", "body": {"ranks": [self.replica]}})
        elif kind == "stop":
            self.stopped = True
