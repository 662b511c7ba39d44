"""Requests that come as others end: a deterministic simulation of an engine's steps.

`concurrency` clients each send a request, wait for its end and send the next. The batches follow
the rules of scheduling/scheduler.py (tests compare them batch by batch): first come first served,
decodes first, prompts in chunks under the step's token budget, a request admitted when the cache
has room for all that it may need. Steps in which nothing but contexts change are taken at once.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf

from parallel.planner.work import StepWork

LENGTH_SPREAD = 0.2
"""Real requests aren't of one length: they vary by this share, evenly, around the given one. Equal
ones would march in step, and wait for each other as no real load does."""


@dataclass(frozen=True)
class Load:
    """`rounds` requests of each client, in the mean, are looked at; `rounds_of_mean` weigh the
    first burst, in which all clients begin at once, against the steady state after it."""

    concurrency: int
    input_tokens: int
    output_tokens: int
    spread: float = LENGTH_SPREAD
    rounds: float = 3
    rounds_of_mean: int = 10

    def times(
        self,
        arrived: Sequence[float],
        first: Sequence[float],
        ended: Sequence[float],
        outputs: Sequence[int],
    ) -> LoadTimes:
        """Means over requests of which the clock was seen at three events, and whose output
        tokens are counted; the first burst weighs as one of `rounds_of_mean`."""

        def mean(requests: range) -> tuple[float, float]:
            waited = sum(first[r] - arrived[r] for r in requests) / len(requests)
            rates = [(ended[r] - first[r]) / (outputs[r] - 1) for r in requests if outputs[r] > 1]
            return waited, sum(rates) / len(rates) if rates else 0.0

        clients, total = self.concurrency, len(arrived)
        burst = mean(range(clients))
        steady = mean(range(clients, total)) if total > clients else burst
        weight = 1 / self.rounds_of_mean if total > clients else 1.0
        ttft, tpot = (weight * b + (1 - weight) * s for b, s in zip(burst, steady, strict=True))
        cycle = ttft + max(0, self.output_tokens - 1) * tpot
        return LoadTimes(ttft, tpot, clients * self.output_tokens / cycle if cycle else inf)

    def lengths(self, request: int) -> tuple[int, int]:
        """Input and output tokens of a request: a low-discrepancy sequence (Halton), so that few
        requests stand for many, and the same in each run."""
        return (
            _between(self.input_tokens, self.spread, _halton(request + 1, 2), 1),
            _between(self.output_tokens, self.spread, _halton(request + 1, 3), 1),
        )


def _between(middle: int, spread: float, part: float, least: int) -> int:
    return max(least, round(middle * (1 + spread * (0.5 - part))))


def _halton(index: int, base: int) -> float:
    part, value = 1.0, 0.0
    while index:
        part /= base
        value += part * (index % base)
        index //= base
    return value


@dataclass(frozen=True)
class Rules:
    """How batches are made. `step_tokens` per step, `chunk_tokens` of them of one prompt,
    `requests` running at once, `cache_tokens` of room, in blocks of `block_tokens`. `mixed`:
    prompts go beside decodes, else before them and alone."""

    step_tokens: int
    requests: int
    cache_tokens: int
    block_tokens: int = 1
    chunk_tokens: int | None = None
    mixed: bool = True

    def reserved(self, tokens: int) -> int:
        return ceil(tokens / self.block_tokens) * self.block_tokens


@dataclass(frozen=True)
class LoadTimes:
    """Means over requests, and output tokens per second of all clients in the steady state."""

    ttft_seconds: float
    tpot_seconds: float
    tokens_per_second: float

    @classmethod
    def mean(cls, parts: Sequence[tuple[LoadTimes, int]]) -> LoadTimes:
        """Over parts that count so many times."""
        total = sum(count for _, count in parts)

        def of(name: str) -> float:
            figures: list[float] = [count * getattr(times, name) for times, count in parts]
            return sum(figures) / total

        return cls(of("ttft_seconds"), of("tpot_seconds"), of("tokens_per_second"))


class Simulation:
    """`step_seconds` gives the time of a step. `arrival_seconds` of a prompt of so many tokens
    pass before the scheduler sees it."""

    def __init__(
        self,
        load: Load,
        rules: Rules,
        step_seconds: Callable[[StepWork], float],
        arrival_seconds: Callable[[int], float] = lambda _: 0.0,
        watch: Callable[[float, StepWork, int], None] | None = None,
    ):
        self.load, self.rules = load, rules
        self._step_seconds, self._arrival_seconds = step_seconds, arrival_seconds
        self._watch = watch
        total = round(load.concurrency * load.rounds)
        self._lengths = [load.lengths(i) for i in range(total)]
        self._arrived, self._first, self._ended = [0.0] * total, [0.0] * total, [0.0] * total
        self._waiting: deque[tuple[float, int]] = deque()
        self._prefilling: deque[list[int]] = deque()
        self._ends: list[tuple[int, int]] = []
        self._now, self._sent, self._done = 0.0, 0, 0
        self._steps = self._decoding = self._context = self._reserved = 0

    def run(self) -> LoadTimes:
        for _ in range(self.load.concurrency):
            self._send()
        while self._done < len(self._lengths):
            self._admit()
            if self._prefilling:
                self._prefill()
            elif self._decoding:
                self._decode()
            else:
                self._now = max(self._now, self._waiting[0][0])
        outputs = [outputs for _, outputs in self._lengths]
        return self.load.times(self._arrived, self._first, self._ended, outputs)

    def _send(self) -> None:
        if self._sent < len(self._lengths):
            self._arrived[self._sent] = self._now
            seen = self._now + self._arrival_seconds(self._lengths[self._sent][0])
            self._waiting.append((seen, self._sent))
            self._sent += 1

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._now:
            running = self._decoding + len(self._prefilling)
            request = self._waiting[0][1]
            room = self.rules.reserved(sum(self._lengths[request]))
            full = self._reserved + room > self.rules.cache_tokens
            if running >= self.rules.requests or (full and running):
                return
            self._waiting.popleft()
            self._reserved += room
            self._prefilling.append([request, 0])

    def _prefill(self) -> None:
        """One step with chunks of prompts."""
        decodes = self._decoding if self.rules.mixed else 0
        contexts = self._context if decodes else 0
        work = StepWork.decode(decodes, contexts)
        budget = max(1, self.rules.step_tokens - decodes)
        most = self.rules.chunk_tokens or budget
        first: list[int] = []
        unfinished: list[list[int]] = []
        while budget and self._prefilling:
            request, done = self._prefilling.popleft()
            length = self._lengths[request][0]
            count = min(budget, most, length - done)
            last = done + count == length
            work += StepWork.prompt(count, done, last)
            budget -= count
            if last:
                first.append(request)
            else:
                unfinished.append([request, done + count])
        self._prefilling.extendleft(reversed(unfinished))
        self._take(work, 1)
        if decodes:
            self._advance(1)
        for request in first:
            self._first[request] = self._now
            inputs, outputs = self._lengths[request]
            if outputs == 1:
                self._end(request)
                continue
            self._decoding += 1
            self._context += inputs + 1
            heapq.heappush(self._ends, (self._steps + outputs - 1, request))

    def _decode(self) -> None:
        """Steps of decodes alone, until one ends or a request comes that can be admitted."""
        count = self._ends[0][0] - self._steps
        one = self._step_seconds(StepWork.decode(self._decoding, self._context))
        if self._waiting and self._decoding < self.rules.requests:
            coming = self._waiting[0][0] - self._now
            if coming > 0:
                count = max(1, min(count, ceil(coming / one)))
        last = one
        if count > 1:
            grown = self._context + (count - 1) * self._decoding
            last = self._step_seconds(StepWork.decode(self._decoding, grown))
        self._take(StepWork.decode(self._decoding, self._context), count, (one + last) / 2)
        self._advance(count)

    def _take(self, work: StepWork, count: int, seconds: float | None = None) -> None:
        if self._watch is not None:
            self._watch(self._now, work, count)
        self._now += count * (self._step_seconds(work) if seconds is None else seconds)

    def _advance(self, count: int) -> None:
        self._steps += count
        self._context += count * self._decoding
        while self._ends and self._ends[0][0] <= self._steps:
            request = heapq.heappop(self._ends)[1]
            self._decoding -= 1
            self._context -= sum(self._lengths[request])
            self._end(request)

    def _end(self, request: int) -> None:
        self._reserved -= self.rules.reserved(sum(self._lengths[request]))
        self._ended[request] = self._now
        self._done += 1
        self._send()
