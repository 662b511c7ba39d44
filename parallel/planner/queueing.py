"""Requests that come as others end: a deterministic simulation of an engine's steps.

The batches follow the rules of docs/scheduling.md, as the runtime's scheduler makes them (tests
compare them batch by batch): first come first served, decodes first, prompts in chunks under the
step's token budget, blocks of the cache as requests grow, the last that came preempted when none is
left, to host memory while that has room. Prompts have nothing in common here but those that a load
repeats whole, so that what is lost is computed again in full. Steps in which nothing but contexts
change are taken at once.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from parallel.planner.decoding import Decoding
from parallel.planner.front import Front, FrontCosts
from parallel.planner.host_pool import HostPool
from parallel.planner.load import Load, LoadTimes
from parallel.planner.work import StepWork
from parallel.scheduling.fairness import share_out


@dataclass(frozen=True)
class Rules:
    """How batches are made. `step_tokens` per step, `requests` running at once, `cache_tokens` of
    room, in blocks of `block_tokens`. `mixed`: prompts go beside decodes, else before them and
    alone. `fair`: prompts share a step as scheduling/fairness.py says, else first come, first
    served. `reserve`: a request waits until there is room for all its tokens to come.
    `host_blocks` of host memory take what gives way, `move_seconds` for each block and way."""

    step_tokens: int
    requests: int
    cache_tokens: int
    block_tokens: int = 1
    mixed: bool = True
    fair: bool = True
    reserve: bool = False
    host_blocks: int = 0
    move_seconds: float = 0.0

    def needed(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def chunks(self, pending: list[int], budget: int) -> list[int]:
        """Tokens for each prompt in a step."""
        if self.fair:
            return share_out(pending, budget)
        given = []
        for p in pending:
            given.append(min(p, budget))
            budget -= given[-1]
        return given


class Simulation:
    """`step_seconds` gives the time of a step, `front` what lies between clients and scheduler.
    Requests are numbered as they are sent; times of arrival, first token and end are the
    clients'."""

    def __init__(
        self,
        load: Load,
        rules: Rules,
        step_seconds: Callable[[StepWork], float],
        front: FrontCosts | None = None,
        watch: Callable[[float, StepWork, int], None] | None = None,
    ):
        self.load, self.rules = load, rules
        self._step_seconds, self._front = step_seconds, Front(front or FrontCosts())
        self._watch = watch
        total = round(load.concurrency * load.rounds)
        self._lengths = [load.lengths(i) for i in range(total)]
        self._arrived, self._first, self._ended = [0.0] * total, [0.0] * total, [0.0] * total
        self._known = [inputs for inputs, _ in self._lengths]
        self._seen = [0.0] * total
        self._waiting: list[int] = []
        self._running: list[int] = []
        self._computed: dict[int, int] = {}
        self._decoding = Decoding(rules.block_tokens)
        self._free = rules.cache_tokens // rules.block_tokens
        self.host = HostPool(rules.host_blocks)
        self._reserved = 0
        """Blocks that all running requests have in the end."""
        self._owed = 0
        """Blocks for known tokens of requests that decode from the next step on."""
        self._now, self._sent, self._done = 0.0, 0, 0
        self._told = 0.0
        """When clients have the tokens of the last step."""

    def run(self) -> LoadTimes:
        for _ in range(self.load.concurrency):
            self._send()
        while self._done < len(self._lengths):
            self._admit()
            if self._computed:
                self._prefill()
            elif self._decoding:
                self._decode()
            else:
                self._now = max(self._now, self._seen[self._waiting[0]])
        outputs = [outputs for _, outputs in self._lengths]
        return self.load.times(self._arrived, self._first, self._ended, outputs)

    def _send(self) -> None:
        if self._sent < len(self._lengths):
            self._arrived[self._sent] = self._told
            self._seen[self._sent] = self._front.request(self._told, self._known[self._sent])
            self._waiting.append(self._sent)
            self._sent += 1

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.rules.requests:
            request = self._waiting[0]
            if self._seen[request] > self._now or (self._running and not self._fits(request)):
                return
            self._waiting.pop(0)
            insort(self._running, request)
            self._reserved += self._whole(request)
            kept = self.host.back(request)
            self._computed[request] = self._found(request) if kept is None else kept
            self._free -= self.rules.needed(self._computed[request])
            if kept is not None:
                self._leave_prompt(request)

    def _whole(self, request: int) -> int:
        return self.rules.needed(sum(self._lengths[request]))

    def _found(self, request: int) -> int:
        """Tokens of a prompt that was asked before, if the cache holds all that are repeated; its
        last block is computed again. They take room of their own here."""
        load, rules = self.load, self.rules
        if not load.asked_before(request) or load.repeated_tokens > rules.cache_tokens:
            return 0
        return max(0, self._known[request] - 1) // rules.block_tokens * rules.block_tokens

    def _fits(self, request: int) -> bool:
        """There is room for all known tokens, and for one block more for each that runs."""
        rules = self.rules
        if rules.reserve:
            whole = self._reserved + self._whole(request)
            return whole <= rules.cache_tokens // rules.block_tokens
        promised = self._owed + sum(self._growth(r, self._known[r]) for r in self._computed)
        spare = self._free - promised - len(self._running) - 1
        return rules.needed(self._known[request]) <= spare

    def _growth(self, request: int, end: int) -> int:
        """Blocks that a prompt takes to be computed up to `end`."""
        return self.rules.needed(end) - self.rules.needed(self._computed[request])

    def _prefill(self) -> None:
        """One step with chunks of prompts."""
        decodes = len(self._decoding) if self.rules.mixed else 0
        budget = max(1, self.rules.step_tokens - decodes)
        prompts = sorted(self._computed)
        pending = [self._known[r] - self._computed[r] for r in prompts]
        chunks = dict(zip(prompts, self.rules.chunks(pending, budget), strict=True))
        self._take_blocks({r: self._computed[r] + c for r, c in chunks.items()}, decodes > 0)
        decodes = decodes and len(self._decoding)
        work = StepWork.decode(decodes, self._decoding.contexts if decodes else 0)
        for request, count in chunks.items():
            if count and request in self._computed:
                done = self._computed[request]
                work += StepWork.prompt(count, done, done + count == self._known[request])
                self._computed[request] = done + count
        self._pass(work, 1)
        for request in self._decoding.advance(1) if decodes else ():
            self._end(request)
        for request in prompts:
            if request in self._computed:
                self._leave_prompt(request)

    def _leave_prompt(self, request: int) -> None:
        """To the decodes, or to its end, once nothing but the last known token is pending that was
        sampled."""
        inputs, outputs = self._lengths[request]
        computed, known = self._computed[request], self._known[request]
        if computed < known and (computed + 1 < known or computed < inputs):
            return
        del self._computed[request]
        if computed == known:
            if known == inputs:
                self._first[request] = self._told
            known += 1
        else:
            self._owed += int(computed % self.rules.block_tokens == 0)
        self._decoding.add(request, known - 1, inputs + outputs - known)
        if known == inputs + outputs:
            self._end(request)

    def _decode(self) -> None:
        """Steps of decodes alone, until one ends, one is preempted, or a request comes that can be
        admitted."""
        decoding = self._decoding
        count = decoding.steps_within(self._free)
        if count == 0:
            self._take_blocks({}, True)
            count = 1
        else:
            count = self._steps_ahead(min(count, decoding.next_end()))
            self._free -= decoding.growth(count)
        one = last = StepWork.decode(len(decoding), decoding.contexts)
        if count > 1:
            last = StepWork.decode(len(decoding), decoding.contexts + (count - 1) * len(decoding))
        self._pass(one, count, (self._step_seconds(one) + self._step_seconds(last)) / 2)
        for request in decoding.advance(count):
            self._end(request)

    def _steps_ahead(self, most: int) -> int:
        """Steps of decodes until a request is seen that finds a place."""
        if not self._waiting or len(self._running) >= self.rules.requests:
            return most
        coming = self._seen[self._waiting[0]] - self._now
        if coming <= 0:
            return most
        decoding = self._decoding
        one = self._step_seconds(StepWork.decode(len(decoding), decoding.contexts))
        return max(1, min(most, ceil(coming / one)))

    def _take_blocks(self, ends: dict[int, int], decodes: bool) -> None:
        """For prompts up to their `ends`, and for a step of the decodes if they take part."""
        decoding = self._decoding
        needed = {r: self._growth(r, end) for r, end in ends.items()}
        growth = sum(needed.values()) + (decoding.growth(1) if decodes else 0)
        if growth <= self._free:
            self._free -= growth
            return
        for request in list(self._running):
            if request in decoding:
                more = int(decodes and decoding.takes_block(request))
            elif request in self._computed:
                more = needed[request]
            else:
                continue
            # Another engine's cache may be too small for even one: it is let through.
            while more > self._free and len(self._running) > 1:
                victim = self._running[-1]
                self._preempt(victim)
                if victim == request:
                    more = 0
            self._free -= more

    def _preempt(self, request: int) -> None:
        if request in self._decoding:
            computed = self._decoding.computed(request)
            self._known[request] = computed + 1
            self._decoding.remove(request)
        else:
            computed = self._computed.pop(request)
        blocks = self.rules.needed(computed)
        self.host.leave(request, computed, blocks)
        self._free += blocks
        self._running.remove(request)
        self._reserved -= self._whole(request)
        insort(self._waiting, request)

    def _pass(self, work: StepWork, count: int, seconds: float | None = None) -> None:
        if self._watch is not None:
            self._watch(self._now, work, count)
        self._owed = 0
        begun = self._now
        self._now += count * (self._step_seconds(work) if seconds is None else seconds)
        self._now += self.host.pass_step() * self.rules.move_seconds
        self._told = self._front.answers(begun, self._now, work.rows, count)

    def _end(self, request: int) -> None:
        self._free += self.rules.needed(self._decoding.computed(request))
        self._decoding.remove(request)
        self._running.remove(request)
        self._reserved -= self._whole(request)
        self._ended[request] = self._told
        self._done += 1
        self._send()
