"""What a replica tells of its requests after a step, and how it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from parallel.errors import RequestError
from parallel.kernels.sampling import Choice
from parallel.requests.types import TokenEvent
from parallel.scheduling.scheduler import Batch


def failure(request_id: int, error: RequestError) -> TokenEvent:
    """A request that isn't taken; the others don't notice."""
    return TokenEvent(request_id, -1, finish_reason="error", message=str(error), code=error.code)


def step_events(
    batch: Batch, choices: Mapping[int, Choice], reasons: Mapping[int, str | None]
) -> Iterator[TokenEvent]:
    """One for each request of which the scheduler said something when `batch` was completed."""
    sequences = {w.sequence.id: w.sequence for w in batch.work}
    for request_id, reason in reasons.items():
        choice = choices.get(request_id)
        if choice is None or reason == "cancelled":
            yield TokenEvent(request_id, -1, finish_reason=reason)
            continue
        s = sequences[request_id]
        first = len(s.tokens) == s.prompt + 1
        yield TokenEvent(
            request_id,
            choice.token,
            choice.logprob,
            choice.top,
            reason,
            cached_tokens=s.cached_tokens if first else None,
        )
