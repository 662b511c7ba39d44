"""What a load came to: throughput, times to first tokens, times between tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from benchmarks.load.jobs import Load, Served


@dataclass(frozen=True)
class Measured:
    """One load answered once by one system.

    `tokens_per_second` counts tokens that came while every client had a request under way. Times
    per token are those between one token of a request and its next. `memory_bytes` is the most
    that all processes had resident together."""

    requests: int
    output_tokens: int
    tokens_per_second: float
    first_token_p50_seconds: float
    first_token_p99_seconds: float
    token_p50_seconds: float
    token_p99_seconds: float
    memory_bytes: int


def summarise(load: Load, served: Served, memory_bytes: int) -> Measured:
    """Raises `ValueError` when nothing was answered."""
    if not served.answers:
        raise ValueError("no request was answered")
    seconds = served.busy_seconds - served.began_seconds
    stamps = [at for answer in served.answers for at in answer.token_seconds]
    first = [answer.token_seconds[0] - answer.sent_seconds for answer in served.answers]
    gaps = [b - a for answer in served.answers for a, b in pairwise(answer.token_seconds)]
    return Measured(
        requests=len(served.answers),
        output_tokens=len(stamps),
        tokens_per_second=sum(at <= served.busy_seconds for at in stamps) / seconds,
        first_token_p50_seconds=percentile(first, 50),
        first_token_p99_seconds=percentile(first, 99),
        token_p50_seconds=percentile(gaps, 50),
        token_p99_seconds=percentile(gaps, 99),
        memory_bytes=memory_bytes,
    )


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


def ratio(ours: Sequence[Measured], theirs: Sequence[Measured]) -> Spread:
    """Throughput beside a peer's, turn by turn: a slow minute of the machine meets both."""
    turns = zip(ours, theirs, strict=True)
    return Spread.of([a.tokens_per_second / b.tokens_per_second for a, b in turns])
