"""The cut with the least time of one batch through all stages, hops included, on the devices there
are; `reach` carries the memory and a limit on each stage's time.

As in stage_reach.py, with time as a cost: prices for devices in place of their number make it a
shortest path, whose cost less what all devices are worth no cut can beat (Lagrange). Prices follow
a subgradient. What is left between that bound and the best cut known is searched by labels: item,
option before it, devices used. Seconds are sums over items, so the best end of a stage is the least
of a sliding window, and a round of prices takes items x options² steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

from parallel.planner.stage_chain import Chain, Reach
from parallel.planner.stage_problem import StageRun, Staging
from parallel.planner.stage_reach import SLACK, Prices, priced, shares_of
from parallel.planner.stage_supply import Packed, Supply
from parallel.planner.stage_ways import Ways

_ROUNDS = 40
_SAME = 1e-9
"""Share of a time below which two are the same."""
MOST_LABELS = 20_000
_BEAM = 24


@dataclass(frozen=True)
class _Label:
    """Stages up to item `at`, the last one on option number `option` from item `first`. `cost` is
    what all stages can't be cheaper than, prices included."""

    at: int
    option: int
    counts: int
    seconds: float
    paid: float
    used: float
    cost: float
    before: _Label | None = None
    first: int = 0


def least_total(
    chain: Chain, supply: Supply, reach: Reach, known: Staging, enough_seconds: float = 0.0
) -> Staging:
    """The best cut, starting from one that is `known`, or one that is good enough. `proven` is
    False where the search was given up after `MOST_LABELS` labels."""
    kept = [
        o
        for o, ends in enumerate(reach)
        if supply.holds(supply.steps[o]) and any(end > at for at, end in enumerate(ends))
    ]
    limits = [limit for limit in supply.linear if limit.most > 0]
    shares = shares_of(supply, kept, limits)
    worth, best_ways, bound, best = [0.0] * len(limits), None, -inf, known
    best_worth, stuck, pace = 0.0, 0, 1.0
    for _ in range(_ROUNDS):
        prices = [sum([w * s for w, s in zip(worth, row, strict=True)]) for row in shares]
        ways = Ways(chain, reach, kept, prices)
        path = ways.cheapest()
        options = [kept[number] for _, _, number in path]
        if supply.holds(supply.total(options)):
            found = tuple(StageRun(a, b, kept[number]) for a, b, number in path)
            best = min(best, chain.evaluate(found), key=lambda s: s.total_seconds)
        if ways.least - sum(worth) > bound:
            bound, best_ways, best_worth, stuck = ways.least - sum(worth), ways, sum(worth), 0
        else:
            stuck += 1
            pace = pace / 2 if stuck % 3 == 0 else pace
        if best.total_seconds <= max(enough_seconds, bound * (1 + _SAME)):
            return best
        over = [sum(column) - 1 for column in zip(*(shares[n] for *_, n in path), strict=True)]
        size = sum(o * o for o in over)
        if size == 0:
            break
        step = pace * (best.total_seconds - ways.least + sum(worth)) / size
        worth = [max(0.0, w + step * o) for w, o in zip(worth, over, strict=True)]
    assert best_ways is not None
    # What devices there are can't cover however long it takes is cut off as well.
    _, cuts = priced(tuple(reach[o] for o in kept), shares, lambda path: False)
    search = _Search(chain, supply, kept, best_ways, best_worth, cuts[0])
    best = min(search.beam(best), best, key=lambda s: s.total_seconds)
    if best.total_seconds <= enough_seconds:
        return best
    return search.exact(best)


class _Search:
    def __init__(
        self,
        chain: Chain,
        supply: Supply,
        kept: Sequence[int],
        ways: Ways,
        worth: float,
        cut: Prices,
    ):
        self._cut = cut
        self._chain, self._supply, self._kept = chain, supply, kept
        self._ways, self._worth, self._packed = ways, worth, Packed(supply)
        self._stages: dict[tuple[int, int], list[tuple[float, float, int]]] = {}
        self._least: dict[tuple[int, int, int], float] = {}

    def beam(self, best: Staging) -> Staging:
        """From item to item, of all labels at one only the `_BEAM` cheapest."""
        limit = best.total_seconds * (1 - _SAME) + self._worth
        at: list[list[_Label]] = [[] for _ in range(self._chain.items + 1)]
        at[0].append(_Label(0, -1, self._packed.start, 0.0, 0.0, 0.0, 0.0))
        for labels in at[:-1]:
            for label in heapq.nsmallest(_BEAM, labels, key=lambda x: x.cost):
                for following in self._following(label, limit):
                    at[following.at].append(following)
        self._least.clear()
        if not at[-1]:
            return best
        return self._staging(min(at[-1], key=lambda x: x.seconds))

    def exact(self, best: Staging) -> Staging:
        """Cheapest labels first, up to `MOST_LABELS`."""
        limit = best.total_seconds * (1 - _SAME) + self._worth
        queue = [(0.0, 0, _Label(0, -1, self._packed.start, 0.0, 0.0, 0.0, 0.0))]
        made = 0
        while queue:
            _, _, label = heapq.heappop(queue)
            if label.at == self._chain.items:
                return self._staging(label)
            if self._least.get((label.at, label.option, label.counts), inf) < label.seconds:
                continue
            for following in self._following(label, limit):
                made += 1
                heapq.heappush(queue, (following.cost, made, following))
            if made > MOST_LABELS:
                return replace(best, proven=False)
        return best

    def _following(self, label: _Label, limit: float) -> Iterator[_Label]:
        """One stage more, in all ways that may end below the limit."""
        kept, ways, at = self._kept, self._ways, label.at
        for number, option in enumerate(kept):
            counts = label.counts + self._packed.steps[option]
            if counts & self._packed.over:
                continue
            if (number, at) not in self._stages:
                self._stages[number, at] = ways.stages(number, at)
            hop = 0.0
            if label.option >= 0:
                hop = self._chain.problem.hop(kept[label.option], option)
            base = label.seconds + label.paid + hop
            used = label.used + self._cut.of_option[number]
            for rest, seconds, end in self._stages[number, at]:
                if base + rest >= limit:
                    break
                if used + self._cut.to_end[end] > 1 + SLACK:
                    continue
                spent, key = label.seconds + hop + seconds, (end, number, counts)
                if self._least.get(key, inf) <= spent or not self._room(counts):
                    continue
                # At the end devices that are left over are paid for as well.
                cost = base + rest if end < self._chain.items else spent + self._worth
                if cost >= limit:
                    continue
                self._least[key] = spent
                paid = label.paid + ways.prices[number]
                yield _Label(end, number, counts, spent, paid, used, cost, label, at)

    def _room(self, counts: int) -> bool:
        alone = self._supply.by_counts_alone
        return alone or self._supply.holds(self._packed.counts(counts))

    def _staging(self, label: _Label) -> Staging:
        runs: list[StageRun] = []
        at: _Label | None = label
        while at is not None and at.before is not None:
            runs.append(StageRun(at.first, at.at, self._kept[at.option]))
            at = at.before
        return self._chain.evaluate(runs[::-1])
