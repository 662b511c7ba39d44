"""The sequences of one HTTP request: submitted, their tokens turned into text, freed at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from parallel.errors import RunError
from parallel.requests.types import Sampling, TokenEvent
from parallel.server.errors import ApiError
from parallel.server.service import Service, State
from parallel.text.stream import TextStream


@dataclass(frozen=True)
class Job:
    """One sequence: `stops` are strings; `continues` when its text goes on from the prompt's."""

    prompt: Sequence[int]
    sampling: Sampling
    stops: tuple[str, ...] = ()
    continues: bool = False


@dataclass(frozen=True)
class Update:
    """What is new of one sequence: text that won't change, and the tokens since the last one."""

    index: int
    text: str
    tokens: tuple[TokenEvent, ...]
    finish_reason: str | None


@dataclass
class _Sequence:
    """`token_count` counts all that were generated, those of a stop string included."""

    index: int
    job: Job
    stream: TextStream
    request_id: int = -1
    token_count: int = 0
    finish_reason: str | None = None
    last_seconds: float | None = None
    text: str = ""
    tokens: list[TokenEvent] = field(default_factory=list)

    def take(self, event: TokenEvent) -> None:
        self.token_count += 1
        if self.job.sampling.logprobs is not None:
            self.tokens.append(event)
        if event.finish_reason != "stop":  # else the token is the end itself, not text
            self.text += self.stream.push((event.token,))
        if event.finish_reason is not None:
            self.text += self.stream.flush()
            self.finish_reason = event.finish_reason
        if self.stream.stopped is not None:
            self.finish_reason = "stop"

    def update(self) -> Update | None:
        """None while text is held back and the end isn't reached."""
        if not self.text and self.finish_reason is None:
            return None
        made = Update(self.index, self.text, tuple(self.tokens), self.finish_reason)
        self.text = ""
        self.tokens.clear()
        return made


class Generation:
    """Belongs to the event loop's thread, where the router's deliveries come too."""

    def __init__(self, service: Service, jobs: Sequence[Job]):
        self._service = service
        self._sequences = [
            _Sequence(i, job, TextStream(service.tokenizer, job.stops, job.continues))
            for i, job in enumerate(jobs)
        ]
        self._inbox: list[tuple[_Sequence, TokenEvent]] = []
        self._arrived = asyncio.Event()
        self._failure: str | None = None
        self._born = time.monotonic()

    @property
    def generated_tokens(self) -> int:
        return sum(s.token_count for s in self._sequences)

    def start(self) -> None:
        """Submits every sequence. Raises `ApiError` 503 when a replica is lost."""
        service = self._service
        service.active.add(self)
        try:
            for sequence in self._sequences:
                job = sequence.job
                sequence.request_id = service.router.submit(
                    job.prompt, job.sampling, partial(self._deliver, sequence)
                )
                service.metrics.prompt_tokens.inc(len(job.prompt))
        except RunError as error:
            self.close()
            raise ApiError(503, str(error), code="unavailable") from None

    async def updates(self) -> list[Update]:
        """What has come since; empty once every sequence has ended. Raises `ApiError` when the
        engine fails."""
        while True:
            if self._failure is not None:
                status = 503 if self._service.state in (State.LOST, State.DRAINING) else 500
                raise ApiError(status, self._failure, code="engine_error")
            taken, self._inbox = self._inbox, []
            made = self._take(taken)
            if made or all(s.finish_reason is not None for s in self._sequences):
                return made
            self._arrived.clear()
            if not self._inbox and self._failure is None:
                await self._arrived.wait()

    def fail(self, message: str) -> None:
        self._failure = message
        self._arrived.set()

    def close(self) -> None:
        """Frees the place of every sequence that hasn't ended. Must be called at the end."""
        if self not in self._service.active:
            return
        self._service.active.discard(self)
        for sequence in self._sequences:
            if sequence.finish_reason is None and sequence.request_id >= 0:
                self._service.router.cancel(sequence.request_id)
                self._service.metrics.finished("error" if self._failure else "abort")

    def _deliver(self, sequence: _Sequence, event: TokenEvent) -> None:
        if sequence.finish_reason is not None:
            return
        if event.finish_reason in ("error", "cancelled"):
            self.fail(event.message or "the request was cancelled by the engine")
            return
        self._inbox.append((sequence, event))
        self._arrived.set()

    def _take(self, taken: Sequence[tuple[_Sequence, TokenEvent]]) -> list[Update]:
        now = time.monotonic()
        touched: dict[int, _Sequence] = {}
        for sequence, event in taken:
            if sequence.finish_reason is None:
                sequence.take(event)
                touched[sequence.index] = sequence
                self._measure(sequence, now)
        return [made for s in touched.values() if (made := s.update()) is not None]

    def _measure(self, sequence: _Sequence, now: float) -> None:
        metrics = self._service.metrics
        metrics.generated_tokens.inc()
        if sequence.last_seconds is None:
            metrics.first_token_seconds.observe(now - self._born)
        else:
            metrics.token_seconds.observe(now - sequence.last_seconds)
        sequence.last_seconds = now
        if sequence.finish_reason is not None:
            metrics.request_seconds.observe(now - self._born)
            metrics.finished(sequence.finish_reason)
            if sequence.stream.stopped is not None:
                self._service.router.cancel(sequence.request_id)
