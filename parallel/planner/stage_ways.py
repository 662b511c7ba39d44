"""The cheapest ways through the chain when each option has a price beside its seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import inf

from parallel.planner.stage_chain import Chain, Reach


class Ways:
    """At given prices of options, in seconds: the least cost from an item to the end, when a stage
    on an option begins there (`stage`) or ended before it (`after`)."""

    def __init__(self, chain: Chain, reach: Reach, kept: Sequence[int], prices: Sequence[float]):
        self._chain, self._reach, self._kept, self.prices = chain, reach, kept, prices
        items, problem = chain.items, chain.problem
        hops = [tuple(problem.hop(a, b) for b in kept) for a in kept]
        # Options from which every hop takes as long continue alike.
        self._kinds = sorted(set(hops))
        self._kind = [self._kinds.index(row) for row in hops]
        self._after = [[inf] * items + [0.0] for _ in self._kinds]
        self.stage = [[inf] * items for _ in kept]
        self._end = [[0] * items for _ in kept]
        windows: list[deque[tuple[float, int]]] = [deque() for _ in kept]
        for first in range(items - 1, -1, -1):
            for number, option in enumerate(kept):
                sums, window = chain.sums[option], windows[number]
                value = sums[first + 1] + self._after[self._kind[number]][first + 1]
                while window and window[-1][0] >= value:
                    window.pop()
                window.append((value, first + 1))
                while window and window[0][1] > reach[option][first]:
                    window.popleft()
                if window:
                    least, self._end[number][first] = window[0]
                    fixed = problem.options[option].stage_seconds + prices[number]
                    self.stage[number][first] = fixed + least - sums[first]
            column = [row[first] for row in self.stage]
            for kind, hop in enumerate(self._kinds):
                self._after[kind][first] = min([h + s for h, s in zip(hop, column, strict=True)])

    @property
    def least(self) -> float:
        return min(row[0] for row in self.stage)

    def after(self, number: int, item: int) -> float:
        return self._after[self._kind[number]][item]

    def cheapest(self) -> list[tuple[int, int, int]]:
        """First item, end and option number of each stage."""
        at, before, found = 0, -1, []
        numbers = range(len(self._kept))
        while at < self._chain.items:
            hop = self._kinds[self._kind[before]] if before >= 0 else [0.0] * len(self._kept)
            best = min(numbers, key=lambda o: hop[o] + self.stage[o][at])
            found.append((at, self._end[best][at], best))
            at, before = found[-1][1], best
        return found

    def stages(self, number: int, first: int) -> list[tuple[float, float, int]]:
        """Of an option from an item: cost to the end, its own seconds, its end; cheapest first."""
        option = self._kept[number]
        found = []
        for end in range(first + 1, self._reach[option][first] + 1):
            seconds = self._chain.seconds(option, first, end)
            found.append((seconds + self.prices[number] + self.after(number, end), seconds, end))
        return sorted(found)
