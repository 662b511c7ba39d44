"""The sequences of one HTTP request: submitted, their tokens turned into text, freed at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count

from parallel.errors import RunError
from parallel.requests.placing import QUEUE_FULL, Ask, QueueFull
from parallel.requests.types import Sampling, TokenEvent
from parallel.server.errors import ApiError
from parallel.server.service import RETRY_SECONDS, Service, State
from parallel.text.stream import TextStream


@dataclass(frozen=True)
class Job:
    """A prompt and a sequence for each of `samplings`. `stops` are strings; `continues` when the
    text goes on from the prompt's; a lower `priority` comes first."""

    prompt: Sequence[int]
    samplings: tuple[Sampling, ...]
    stops: tuple[str, ...] = ()
    continues: bool = False
    priority: int = 0


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
    sampling: Sampling
    stream: TextStream
    request_id: int = -1
    token_count: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    last_seconds: float | None = None
    text: str = ""
    tokens: list[TokenEvent] = field(default_factory=list)

    def take(self, event: TokenEvent) -> None:
        self.token_count += 1
        self.cached_tokens = event.cached_tokens or self.cached_tokens
        if self.sampling.logprobs is not None:
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
        self._service, self._jobs = service, jobs
        number = count()
        self._groups = [
            [_Sequence(next(number), s, self._stream(job)) for s in job.samplings] for job in jobs
        ]
        self._sequences = [s for group in self._groups for s in group]
        self._inbox: list[tuple[_Sequence, TokenEvent]] = []
        self._arrived = asyncio.Event()
        self._failure: ApiError | None = None
        self._born = time.monotonic()

    def _stream(self, job: Job) -> TextStream:
        return TextStream(self._service.tokenizer, job.stops, job.continues)

    @property
    def sequences(self) -> int:
        return len(self._sequences)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(job.prompt) for job in self._jobs)

    @property
    def cached_tokens(self) -> int:
        """Of the prompts: what the first of each group found in the cache. The others find what it
        computed."""
        return sum(min(s.cached_tokens for s in group) for group in self._groups)

    @property
    def generated_tokens(self) -> int:
        return sum(s.token_count for s in self._sequences)

    def start(self) -> None:
        """Submits every sequence, those of one prompt together. Raises `ApiError` 429 when there
        are no places for all, 503 when a replica is lost."""
        service = self._service
        asks = [
            Ask(job.prompt, [(s.sampling, partial(self._deliver, s)) for s in group], job.priority)
            for job, group in zip(self._jobs, self._groups, strict=True)
        ]
        try:
            numbers = service.router.submit_all(asks)
        except QueueFull as error:
            service.metrics.refused.inc(self.sequences)
            raise _full(str(error), error.retry_seconds) from None
        except RunError as error:
            raise ApiError(503, str(error), code="unavailable") from None
        service.active.add(self)
        for sequence, number in zip(self._sequences, chain(*numbers), strict=True):
            sequence.request_id = number
        service.metrics.prompt_tokens.inc(self.prompt_tokens)

    async def updates(self) -> list[Update]:
        """What has come since; empty once every sequence has ended. Raises `ApiError` when the
        engine fails."""
        while True:
            if self._failure is not None:
                raise self._failure
            taken, self._inbox = self._inbox, []
            made = self._take(taken)
            if made or all(s.finish_reason is not None for s in self._sequences):
                return made
            self._arrived.clear()
            if not self._inbox and self._failure is None:
                await self._arrived.wait()

    def fail(self, message: str) -> None:
        status = 503 if self._service.state in (State.LOST, State.DRAINING) else 500
        self._fail(ApiError(status, message, code="engine_error"))

    def _fail(self, error: ApiError) -> None:
        self._failure = error
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
            self._refuse(event)
            return
        self._inbox.append((sequence, event))
        self._arrived.set()

    def _refuse(self, event: TokenEvent) -> None:
        """The engine took the sequence not, or no longer."""
        message = event.message or "the request was cancelled by the engine"
        if event.code == QUEUE_FULL:
            self._service.metrics.refused.inc()
            self._fail(_full(message, RETRY_SECONDS))
        elif event.code is not None:
            self._fail(ApiError(400, message, code=event.code))
        else:
            self.fail(message)

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


def _full(message: str, retry_seconds: int) -> ApiError:
    return ApiError(429, message, code=QUEUE_FULL, retry_seconds=retry_seconds)
