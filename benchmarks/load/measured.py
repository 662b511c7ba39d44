"""What a load came to: throughput, times to first tokens, times between tokens."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from benchmarks.load.jobs import Load, Served


@dataclass(frozen=True)
class Measured:
    """One load answered once by one system.

    `tokens_per_second` counts tokens that came while every client had a request under way,
    `decode_tokens_per_second` those that came while every client was past its first token and
    before its last: None where there was no such time. `token_…`: a request's mean time per token
    after the first. `gap_p99_seconds`: from one arrival of tokens to the next of that request.
    `memory_bytes`: the most that all processes had resident together."""

    requests: int
    output_tokens: int
    tokens_per_second: float
    decode_tokens_per_second: float | None
    first_token_p50_seconds: float
    first_token_p99_seconds: float
    token_p50_seconds: float
    token_p99_seconds: float
    gap_p99_seconds: float
    memory_bytes: int


def summarise(load: Load, served: Served, memory_bytes: int) -> Measured:
    """Raises `ValueError` when nothing was answered, or everything with one token."""
    if not served.answers:
        raise ValueError("no request was answered")
    seconds = served.busy_seconds - served.began_seconds
    answers = [answer.token_seconds for answer in served.answers]
    first = [answer.token_seconds[0] - answer.sent_seconds for answer in served.answers]
    per_token = [(a[-1] - a[0]) / (len(a) - 1) for a in answers if len(a) > 1]
    gaps = [later - at for answer in answers for at, later in pairwise(sorted(set(answer)))]
    return Measured(
        requests=len(answers),
        output_tokens=sum(map(len, answers)),
        tokens_per_second=sum(at <= served.busy_seconds for a in answers for at in a) / seconds,
        decode_tokens_per_second=decode_rate(answers, load.clients),
        first_token_p50_seconds=percentile(first, 50),
        first_token_p99_seconds=percentile(first, 99),
        token_p50_seconds=percentile(per_token, 50),
        token_p99_seconds=percentile(per_token, 99),
        gap_p99_seconds=percentile(gaps, 99),
        memory_bytes=memory_bytes,
    )


def decode_rate(answers: Sequence[Sequence[float]], clients: int) -> float | None:
    """Tokens per second over the time in which `clients` answers were between their first token and
    their last."""
    turns = sorted((at, step) for a in answers for at, step in ((a[0], 1), (a[-1], -1)))
    active, spans = 0, []
    for (at, step), (until, _) in pairwise(turns):
        active += step
        if active >= clients and until > at:
            spans.append((at, until))
    seconds = sum(until - at for at, until in spans)
    stamps = sorted(at for answer in answers for at in answer)
    tokens = sum(bisect_right(stamps, until) - bisect_right(stamps, at) for at, until in spans)
    return tokens / seconds if seconds else None


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that at least `percent` % of all values don't exceed (nearest rank)."""
    if not values:
        raise ValueError("no values")
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


@dataclass(frozen=True)
class Spread:
    """Median, least and most over the turns."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def text(self, digits: int) -> str:
        if self.least == self.most:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}–{self.most:.{digits}f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Speed beside a peer's, turn by turn: a slow minute of the machine meets both."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
