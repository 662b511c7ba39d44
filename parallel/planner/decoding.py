"""Requests that decode side by side, one token each in every step, many steps at once."""

from __future__ import annotations

import heapq


class Decoding:
    """`steps` decoded so far. Blocks of the cache have `block_tokens`; a request whose computed
    tokens fill its blocks takes one more in its next step.

    A request's computed tokens less the steps so far don't change while it decodes, so counting
    them modulo a block says how many requests take a block in any step."""

    def __init__(self, block_tokens: int):
        self.block_tokens, self.steps = block_tokens, 0
        self.contexts = 0
        """Tokens that the next step attends to, over all requests."""
        self._offsets: dict[int, int] = {}
        self._ends: list[tuple[int, int]] = []
        self._end: dict[int, int] = {}
        self._phases = [0] * block_tokens

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, request: int) -> bool:
        return request in self._offsets

    def add(self, request: int, computed: int, remaining: int) -> None:
        """With `computed` tokens in the cache and one more known; ends after `remaining` steps."""
        offset = computed - self.steps
        self._offsets[request] = offset
        self._phases[offset % self.block_tokens] += 1
        self.contexts += computed + 1
        self._end[request] = self.steps + remaining
        heapq.heappush(self._ends, (self.steps + remaining, request))

    def computed(self, request: int) -> int:
        return self._offsets[request] + self.steps

    def remove(self, request: int) -> None:
        self.contexts -= self.computed(request) + 1
        self._phases[self._offsets.pop(request) % self.block_tokens] -= 1
        self._end.pop(request, None)

    def takes_block(self, request: int) -> bool:
        """In its next step."""
        return self.computed(request) % self.block_tokens == 0

    def growth(self, steps: int) -> int:
        """Blocks that all take in the next `steps` steps."""
        rounds, rest = divmod(steps, self.block_tokens)
        taken = rounds * len(self)
        for step in range(self.steps, self.steps + rest):
            taken += self._phases[-step % self.block_tokens]
        return taken

    def steps_within(self, free: int) -> int:
        """How many steps take no more than `free` blocks."""
        rounds, left = divmod(free, len(self)) if free > 0 else (0, free)
        steps = rounds * self.block_tokens
        for step in range(self.steps, self.steps + self.block_tokens):
            left -= self._phases[-step % self.block_tokens]
            if left < 0:
                break
            steps += 1
        return steps

    def next_end(self) -> int:
        """Steps until one has all its tokens."""
        while self._end.get(self._ends[0][1]) != self._ends[0][0]:
            heapq.heappop(self._ends)
        return self._ends[0][0] - self.steps

    def advance(self, steps: int) -> list[int]:
        """Takes steps, at most up to the next end. Returns those that have all their tokens;
        they are still here."""
        self.steps += steps
        self.contexts += steps * len(self)
        ended = []
        while self._ends and self._ends[0][0] <= self.steps:
            end, request = heapq.heappop(self._ends)
            if self._end.get(request) == end:
                del self._end[request]
                ended.append(request)
        return ended
