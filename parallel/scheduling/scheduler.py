"""Which tokens of which requests the next step computes. No tensor, no clock: testable alone.

Requests join and leave between steps; docs/scheduling.md has the rules and why they end. With a
pipeline several batches are in flight. All of them may compute the same prompt, chunk after chunk;
a sequence whose next token is being sampled waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from parallel.errors import RequestError
from parallel.requests.types import Request, TokenEvent
from parallel.scheduling.admission import Admission
from parallel.scheduling.batch import Batch, TableChange, Work
from parallel.scheduling.blocks import BlockManager
from parallel.scheduling.counts import Counts
from parallel.scheduling.fairness import share_out
from parallel.scheduling.limits import Limits, last_token
from parallel.scheduling.queue import WaitingQueue
from parallel.scheduling.sequence import Sequence, Stage
from parallel.scheduling.tables import BlockTables

__all__ = ["Batch", "Limits", "Scheduler", "Sequence", "TableChange", "Work"]


_RUNNING, _LEFT = Stage.RUNNING, Stage.LEFT


class Scheduler:
    """By priority, then first come, first served. The same calls give the same batches."""

    def __init__(self, blocks: BlockManager, limits: Limits, eos_token_ids: Iterable[int] = ()):
        self.blocks, self.limits = blocks, limits
        self.eos = frozenset(eos_token_ids)
        self._counts = Counts()
        self._tables = BlockTables(blocks)
        self._admission = Admission(self._tables, limits.places)
        self._known: dict[int, Sequence] = {}
        self._came = 0

    @property
    def waiting(self) -> WaitingQueue:
        """Those that were preempted among them."""
        return self._admission.waiting

    @property
    def running(self) -> dict[int, Sequence]:
        """By request id, most senior first."""
        return self._admission.running

    @property
    def idle(self) -> bool:
        return not self._known

    @property
    def used_tokens(self) -> int:
        """Of the cache, what sequences hold."""
        return (self.blocks.total - self.blocks.free) * self.blocks.block_tokens

    @property
    def counts(self) -> Counts:
        self._counts.evictions = self.blocks.evictions
        self._counts.copies = self._tables.copied
        return self._counts

    def add(self, request: Request) -> None:
        """Raises `RequestError` for what could never be served, and with code 'queue_full' for
        what can't be now."""
        last = last_token(request, self.limits, self.blocks)
        ahead = len(self._known) - self.limits.places
        if self.limits.queue is not None and ahead >= self.limits.queue:
            self._counts.refused += 1
            raise RequestError(
                f"{len(self._known)} requests are running or waiting; {self.limits.places} run at "
                f"once and {self.limits.queue} may wait: try again later",
                code="queue_full",
            )
        sequence = Sequence.of(request, last, self._came)
        self._came += 1
        self._known[request.id] = sequence
        self.waiting.add(sequence)

    def cancel(self, request_id: int) -> TokenEvent | None:
        """Frees the request's place at once; None if it isn't known (any more). What a batch in
        flight still computes for it is dropped."""
        found = self._known.get(request_id)
        if found is None:
            return None
        self._leave(found)
        return TokenEvent(request_id, -1, finish_reason="cancelled")

    def schedule(self) -> Batch | None:
        """The next batch, or None when nothing is ready."""
        self._admission.admit()
        work = []
        for s, count in self._chosen():
            end = s.computed + count
            if s.stage is _RUNNING and (end <= s.writable or self._make_room(s, end)):
                samples = end == len(s.tokens)
                work.append(Work(s, s.computed, count, samples))
                s.computed, s.awaited = end, samples
        if not work:
            return None
        # A chunk of one token is shaped like a decode, and decodes come first.
        work.sort(key=_is_long)
        joined, tables = self._tables.tell(work)
        for s in joined:
            self._counts.prompt_tokens += s.prompt
            self._counts.cached_tokens += s.cached_tokens
        out, copies, back = self._tables.moves()
        return Batch(tuple(work), joined, tables, copies, out, back)

    def _chosen(self) -> list[tuple[Sequence, int]]:
        """Who gets how many tokens, most senior first: one for each that decodes, the rest for
        prompts. Each batch samples its share of the running sequences at most."""
        share = -(-len(self.running) // self.limits.batches)
        decodes: list[tuple[Sequence, int]] = []
        prompts: list[Sequence] = []
        for s in self.running.values():
            pending = len(s.tokens) - s.computed
            if pending == 1 and s.computed >= s.prompt:
                decodes.append((s, 1))
            elif pending:
                prompts.append(s)
        del decodes[share:]
        if not prompts:
            return decodes
        chunks = self._chunks(prompts, share - len(decodes), self.limits.step_tokens - len(decodes))
        return sorted(decodes + chunks, key=lambda chosen: chosen[0].seniority)

    def _chunks(
        self, prompts: list[Sequence], samples: int, budget: int
    ) -> list[tuple[Sequence, int]]:
        """Chunks of prompts, of which so many `samples` may be the last."""
        counts = share_out(
            [s.pending for s in prompts], budget, [s.request.priority for s in prompts]
        )
        chosen = []
        for s, count in zip(prompts, counts, strict=True):
            if count == s.pending:
                samples -= 1
                if samples < 0:
                    continue
            if count:
                chosen.append((s, count))
        return chosen

    def _make_room(self, s: Sequence, end: int) -> bool:
        """Blocks up to `end`, if need be those of sequences junior to `s`; False when it was
        preempted itself."""
        while not self._tables.grow(s, end):
            victim = self._admission.last
            self._preempt(victim)
            if victim is s:
                return False
        return True

    def _preempt(self, s: Sequence) -> None:
        lost = s.computed
        if self._tables.swap_out(s):
            self._counts.swapped += 1
        else:
            self._tables.release(s)
            self._counts.recomputed += 1
            self._counts.recomputed_tokens += lost
        self._admission.stop(s, Stage.WAITING)

    def complete(self, batch: Batch, tokens: dict[int, int]) -> dict[int, str | None]:
        """Takes a batch's sampled tokens by request id. Returns the finish reason (or None) for
        each request that got a token; finished requests have left."""
        reasons: dict[int, str | None] = {}
        for w in batch.work:
            s = w.sequence
            if not w.samples or s.stage is _LEFT:
                continue
            token = tokens[s.request.id]
            s.awaited = False
            s.tokens.append(token)
            reason = reasons[s.request.id] = self._reason(s, token)
            if reason is not None:
                self._leave(s)
        return reasons

    def _reason(self, s: Sequence, token: int) -> str | None:
        sampling = s.request.sampling
        if token in sampling.stop_token_ids or (token in self.eos and not sampling.ignore_eos):
            return "stop"
        return "length" if len(s.tokens) >= s.last else None

    def _leave(self, s: Sequence) -> None:
        del self._known[s.request.id]
        self._tables.release(s)
        self._admission.stop(s, Stage.LEFT)


def _is_long(work: Work) -> bool:
    return work.count > 1
