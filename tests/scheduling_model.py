"""A replica without tensors: it executes batches in order and knows what every slot must hold.

A key and value depend on all tokens up to theirs. So a slot holds a digest of them, and before a
sequence computes, every slot that it would attend to must hold the digest of its own tokens.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from parallel.requests.types import Request
from parallel.scheduling.scheduler import Batch, Scheduler

EOS = 7


@dataclass
class Mirror:
    """What a rank knows of a sequence."""

    tokens: list[int]
    table: list[int]
    written: list[int] = field(default_factory=list)
    """Digests of its tokens, as far as they were needed."""

    def digest(self, position: int) -> int:
        while len(self.written) <= position:
            before = self.written[-1] if self.written else 0
            self.written.append(hash((before, self.tokens[len(self.written)])))
        return self.written[position]


class Replica:
    """Drives a scheduler as an engine with its ranks does, and checks each step of it."""

    def __init__(self, scheduler: Scheduler, seed: int = 0):
        self.scheduler, self.random = scheduler, random.Random(seed)
        blocks = scheduler.blocks
        self.size = blocks.block_tokens
        self.device: list[list[int | None]] = [[None] * self.size for _ in range(blocks.total)]
        self.host: list[list[int | None]] = [[None] * self.size for _ in range(blocks.host_total)]
        self.mirrors: dict[int, Mirror] = {}
        self.flight: deque[Batch] = deque()
        self.known: dict[int, list[int]] = {}
        self.requests: dict[int, Request] = {}
        self.ended: dict[int, str] = {}
        self.computed_tokens = 0

    def add(self, request: Request) -> None:
        self.scheduler.add(request)
        self.requests[request.id] = request
        self.known[request.id] = list(request.prompt)

    def cancel(self, number: int) -> None:
        event = self.scheduler.cancel(number)
        assert (event is not None) == (number in self.known and number not in self.ended)
        if event is not None:
            self._end(number, "cancelled")

    def schedule(self) -> Batch | None:
        """One batch, executed by the ranks at once: what flies is its tokens alone."""
        batch = self.scheduler.schedule()
        if batch is None:
            return None
        assert 0 < batch.tokens <= self.scheduler.limits.step_tokens
        ones = [w.count == 1 for w in batch.work]
        assert ones == sorted(ones, reverse=True), "chunks of one token come first"
        sampled = {w.sequence.id for b in self.flight for w in b.work if w.samples}
        mine = [w.sequence.id for w in batch.work]
        assert len(set(mine)) == len(mine) and not sampled & set(mine)
        self._apply(batch)
        self._compute(batch)
        self.flight.append(batch)
        return batch

    def _apply(self, batch: Batch) -> None:
        for s in batch.joined:
            assert s.id not in self.mirrors, "joins once"
            self.mirrors[s.id] = Mirror(self.known[s.id], list(s.blocks))
        for change in batch.tables:
            table = self.mirrors[change.id].table
            assert change.keep <= len(table)
            table[change.keep :] = change.added
        for block, place in batch.swapped_out:
            self.host[place] = list(self.device[block])
        for source, target in batch.copies:
            self.device[target] = list(self.device[source])
        for block, place in batch.swapped_in:
            self.device[block] = list(self.host[place])

    def _compute(self, batch: Batch) -> None:
        for w in batch.work:
            mirror = self.mirrors[w.sequence.id]
            assert mirror.table == w.sequence.blocks
            assert mirror.tokens == w.sequence.tokens
            for position in range(w.start):
                assert self._slot(mirror, position) == mirror.digest(position)
        for w in batch.work:
            mirror = self.mirrors[w.sequence.id]
            assert w.start + w.count <= len(mirror.tokens)
            assert w.samples == (w.start + w.count == len(mirror.tokens))
            for position in range(w.start, w.start + w.count):
                block = mirror.table[position // self.size]
                self.device[block][position % self.size] = mirror.digest(position)
        for w in batch.work:
            mirror = self.mirrors[w.sequence.id]
            for position in range(w.start + w.count):
                assert self._slot(mirror, position) == mirror.digest(position)
        self.computed_tokens += batch.tokens

    def _slot(self, mirror: Mirror, position: int) -> int | None:
        return self.device[mirror.table[position // self.size]][position % self.size]

    def complete(self) -> None:
        batch = self.flight.popleft()
        sampled = {w.sequence.id: self._token() for w in batch.work if w.samples}
        reasons = self.scheduler.complete(batch, sampled)
        assert set(reasons) == set(sampled) - set(self.ended)
        for number, reason in reasons.items():
            self.known[number].append(sampled[number])
            if reason is not None:
                self._end(number, reason)

    def _token(self) -> int:
        return self.random.choice((1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, EOS))

    def _end(self, number: int, reason: str) -> None:
        assert number not in self.ended, "ends once"
        self.ended[number] = reason
        self.mirrors.pop(number, None)

    def check(self) -> None:
        """What holds between any two calls."""
        scheduler, blocks = self.scheduler, self.scheduler.blocks
        running = list(scheduler.running.values())
        held = {b for s in running for b in s.blocks}
        assert len(held) + blocks.free == blocks.total, "every block is held or free"
        out = [h for s in scheduler.waiting for h in s.host]
        assert len(set(out)) == len(out) and len(out) + blocks.host_free == blocks.host_total
        assert not any(s.blocks for s in scheduler.waiting)
        assert len(running) <= scheduler.limits.places
        for order in (running, list(scheduler.waiting)):
            assert [s.seniority for s in order] == sorted(s.seniority for s in order)
        alive = {s.id for s in running} | {s.id for s in scheduler.waiting}
        assert alive == set(self.known) - set(self.ended)
        assert scheduler.used_tokens == len(held) * self.size

    def step(self) -> None:
        """As an engine does: fills the pipeline, then takes the oldest batch's tokens."""
        while len(self.flight) < self.scheduler.limits.batches:
            if self.schedule() is None:
                break
        assert self.flight, "something is always under way"
        self.complete()

    def drain(self, steps: int = 20_000) -> None:
        """Until all have ended; each that wasn't cut short has its tokens, and no block leaks."""
        while self.flight or not self.scheduler.idle:
            if self.flight and self.scheduler.idle:
                self.complete()
            else:
                self.step()
            self.check()
            steps -= 1
            assert steps > 0, "no progress"
        assert set(self.ended) == set(self.requests)
        assert self.scheduler.blocks.whole
        for number, reason in self.ended.items():
            asked = self.requests[number]
            context = self.scheduler.limits.context_tokens
            if reason == "length":
                last = min(len(asked.prompt) + asked.sampling.max_tokens, context)
                assert len(self.known[number]) == last
