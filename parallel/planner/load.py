"""Clients that each wait for an answer and send the next request: how long their requests are, and
means over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

LENGTH_SPREAD = 0.2
"""Real requests aren't of one length: they vary by this share, evenly, around the given one. Equal
ones would march in step, and wait for each other as no real load does."""


@dataclass(frozen=True)
class Load:
    """`rounds` requests of each client, in the mean, are looked at; `rounds_of_mean` weigh the
    first burst, in which all clients begin at once, against the steady state after it. `prompts`:
    a load generator that has only so many asks them in turn and then begins again, so that an
    engine may find them in its cache (`asked_before`); 0: no two are alike."""

    concurrency: int
    input_tokens: int
    output_tokens: int
    spread: float = LENGTH_SPREAD
    rounds: float = 3
    rounds_of_mean: int = 10
    prompts: int = 0

    @property
    def repeated_tokens(self) -> int:
        """Of all different prompts and their answers, which an engine may keep."""
        return self.prompts * (self.input_tokens + self.output_tokens)

    def asked_before(self, request: int) -> bool:
        """Whether the prompt of a request (0 is the first) is a repetition.

        The generator's run has `concurrency` · `rounds_of_mean` requests, the first `prompts` of
        them new. In the burst that is counted: request 20 of 16 prompts is a repetition. Of the
        requests after it only a few are simulated for all, and the new ones among all would come
        first: so each is new with the share that new ones have in the whole, spread evenly over
        their numbers. With 100 prompts and 16 clients 84 are left for the 144 requests after the
        burst, 58 % of them new; with 128 clients the burst has asked them all."""
        if request < self.concurrency or not self.prompts:
            return 0 < self.prompts <= request
        later = self.concurrency * (self.rounds_of_mean - 1)
        new_share = (self.prompts - self.concurrency) / later
        return _halton(request + 1, 5) >= new_share

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
