"""Which replica gets a prompt: the one that is likely done with it first.

The measure is tokens: those that a replica has left to compute, plus those of the prompt that it
wasn't sent lately, plus those to generate. A known prefix draws a prompt to its replica until the
work that waits there outweighs what the prefix saves, so a hot one doesn't pile up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from parallel.errors import RequestError
from parallel.requests.replica import Deliver, Replica
from parallel.requests.types import Sampling

QUEUE_FULL = "queue_full"
"""The code of that error, from here or from a leader."""
_NEWEST_WEIGHT = 1 / 32


class QueueFull(RequestError):
    """No replica takes so many more sequences now; `retry_seconds` from now one may."""

    def __init__(self, message: str, retry_seconds: int):
        super().__init__(message, code=QUEUE_FULL)
        self.retry_seconds = retry_seconds


@dataclass(frozen=True)
class Ask:
    """A prompt, continued once for each of `parts`: a sampling, and who gets its events."""

    prompt: Sequence[int]
    parts: Sequence[tuple[Sampling, Deliver]]
    priority: int = 0


@dataclass
class Lengths:
    """How long answers are: a running mean, since `max_tokens` is often far above it."""

    _mean: float | None = None

    def expected(self, max_tokens: int) -> int:
        return max_tokens if self._mean is None else max(1, min(max_tokens, round(self._mean)))

    def saw(self, tokens: int) -> None:
        before = tokens if self._mean is None else self._mean
        self._mean = before + _NEWEST_WEIGHT * (tokens - before)


def check_room(replicas: Collection[Replica], asks: int, size: int, now: float) -> None:
    """Whether so many asks of `size` sequences each have a place. Raises `QueueFull`, or
    `RequestError` when they wouldn't have one in an idle server either."""
    if asks <= sum(r.places(size) for r in replicas):
        return
    most = sum(r.most_places(size) for r in replicas)
    if asks > most:
        raise RequestError(
            f"{asks} prompt(s) with {size} sequence(s) each are more than this server takes at "
            f"once, {most} such prompts; send fewer, or raise engine.queue",
            param="n" if size > 1 else "prompt",
        )
    waiting = sum(len(r.requests) for r in replicas)
    raise QueueFull(
        f"{waiting} requests run or wait, as many as may; try again later",
        min(r.retry_seconds(size, now) for r in replicas if r.most_places(size)),
    )


def choose(
    replicas: Collection[Replica], tokens: int, digests: Sequence[int], block_tokens: int, size: int
) -> tuple[Replica, int]:
    """The replica for `size` sequences of a prompt of `tokens` tokens, and how many of these it
    likely has to compute: at least the last one. Ties go to the lowest number."""
    free = [r for r in replicas if r.places(size)]
    computed = {
        r.number: tokens - min(r.prefixes.matched(digests) * block_tokens, tokens - 1) for r in free
    }
    best = min(free, key=lambda r: (r.work_tokens + computed[r.number], r.number))
    return best, computed[best.number]
