"""Which tokens of which requests the next step computes. No tensor, no clock: testable alone.

Requests join and leave between steps. A request is admitted when the cache has room for all that
it may ever need, so an admitted request always ends. Prompts are computed in chunks under the
step's token budget, beside the decodes of others. With a pipeline several batches are in flight:
a sequence is in one of them at most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from parallel.errors import RequestError
from parallel.requests.types import Request, TokenEvent
from parallel.scheduling.batch import Batch, TableChange, Work
from parallel.scheduling.blocks import BlockManager
from parallel.scheduling.sequence import Sequence

__all__ = ["Batch", "Limits", "Scheduler", "Sequence", "TableChange", "Work"]


@dataclass(frozen=True)
class Limits:
    """`step_tokens` per batch, `requests` running at once, `batches` in flight, `queue` waiting
    at most (None: any number)."""

    step_tokens: int
    requests: int
    context_tokens: int
    batches: int = 1
    queue: int | None = None


class Scheduler:
    """First come, first served."""

    def __init__(self, blocks: BlockManager, limits: Limits, eos_token_ids: Iterable[int] = ()):
        self.blocks, self.limits = blocks, limits
        self.eos = frozenset(eos_token_ids)
        self.waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    @property
    def used_tokens(self) -> int:
        return (self.blocks.total - self.blocks.free) * self.blocks.block_tokens

    def add(self, request: Request) -> None:
        """Raises `RequestError` for what could never be served."""
        length, context = len(request.prompt), self.limits.context_tokens
        if length == 0:
            raise RequestError("the prompt is empty; give at least one token", param="prompt")
        if length >= context:
            raise RequestError(
                f"the prompt has {length} tokens; the context holds {context}, one generated "
                "token included: shorten the prompt",
                param="prompt",
                code="context_length_exceeded",
            )
        last = min(length + request.sampling.max_tokens, context)
        if self.blocks.needed(last) > self.blocks.total:
            raise RequestError(
                f"{length} prompt and {last - length} new tokens don't fit the KV cache of "
                f"{self.blocks.total * self.blocks.block_tokens} tokens; ask for fewer tokens, or "
                "raise memory_gib",
                param="max_tokens",
                code="context_length_exceeded",
            )
        self.waiting.append(Sequence(request, list(request.prompt), last))

    def cancel(self, request_id: int) -> TokenEvent | None:
        """Frees the request's place, at once or when its step in flight ends."""
        for sequence in self.waiting:
            if sequence.id == request_id:
                self.waiting.remove(sequence)
                return TokenEvent(request_id, -1, finish_reason="cancelled")
        found = self.running.get(request_id)
        if found is None:
            return None
        found.cancelled = True
        if found.in_flight:
            return None
        self._leave(found)
        return TokenEvent(request_id, -1, finish_reason="cancelled")

    def schedule(self) -> Batch | None:
        """The next batch, or None when nothing is ready."""
        joined = self._admit()
        ready = [s for s in self.running.values() if not s.in_flight]
        if not ready:
            return None
        share = -(-len(self.running) // self.limits.batches)
        decodes = [s for s in ready if s.pending == 1 and s.computed >= s.prompt]
        prefills = [s for s in ready if not (s.pending == 1 and s.computed >= s.prompt)]
        work = [Work(s, s.computed, 1, True) for s in decodes[:share][: self.limits.step_tokens]]
        left = self.limits.step_tokens - len(work)
        for s in prefills:
            if left == 0 or len(work) >= share:
                break
            count = min(s.pending, left)
            work.append(Work(s, s.computed, count, count == s.pending))
            left -= count
        # A chunk of one token is shaped like a decode, and decodes come first.
        work.sort(key=lambda w: w.count > 1)
        for w in work:
            w.sequence.in_flight = True
        return Batch(tuple(work), joined)

    def _admit(self) -> tuple[Sequence, ...]:
        joined = []
        while self.waiting and len(self.running) < self.limits.requests:
            needed = self.blocks.needed(self.waiting[0].last)
            if needed > self.blocks.free:
                break
            sequence = self.waiting.popleft()
            sequence.blocks = self.blocks.allocate(needed)
            self.running[sequence.id] = sequence
            joined.append(sequence)
        return tuple(joined)

    def complete(self, batch: Batch, tokens: dict[int, int]) -> dict[int, str | None]:
        """Takes a batch's sampled tokens by request id. Returns the finish reason (or None) for
        each request that got a token; finished requests have left."""
        reasons: dict[int, str | None] = {}
        for w in batch.work:
            s = w.sequence
            s.in_flight = False
            s.computed = w.start + w.count
            if s.cancelled:
                reasons[s.id] = "cancelled"
            elif w.samples:
                s.tokens.append(tokens[s.id])
                reasons[s.id] = self._reason(s)
            if reasons.get(s.id) is not None:
                self._leave(s)
        return reasons

    def _reason(self, s: Sequence) -> str | None:
        sampling, token = s.request.sampling, s.tokens[-1]
        if token in sampling.stop_token_ids or (token in self.eos and not sampling.ignore_eos):
            return "stop"
        return "length" if len(s.tokens) >= s.last else None

    def _leave(self, sequence: Sequence) -> None:
        del self.running[sequence.id]
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
