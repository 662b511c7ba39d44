"""Whether a chain can be covered by the devices there are: a furthest-reach programme over counts.

For the counts of devices used, the furthest item that stages on them can reach is all that matters
(stages may be shorter, so further is never worse). Four steps, all exact:

1. An option that gets nowhere further than several smaller groups on as many devices is left out.
2. Prices. With a price for each device instead of a limit on their number, the cheapest cover is a
   shortest path over the items. When a cover costs more than all devices are worth, at any prices,
   there is no cover within the limits (Lagrange); when the cheapest keeps the limits, it is one.
3. Prices are moved towards what is used too much, some dozen times.
4. What is left open is searched: states by counts, those nearest to the end first, none from
   which the rest of the chain is dearer than the devices left.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from math import exp, inf, sqrt

from parallel.planner.stage_chain import Reach
from parallel.planner.stage_problem import StageProblem
from parallel.planner.stage_supply import Limit, Packed, Supply

_ROUNDS = 60
SLACK = 1e-9
"""Prices are floats: a cover is called too dear only beyond this share."""


class Prices:
    """A price for each option, all limits together worth 1, and the cheapest way from each item to
    the end at these prices."""

    def __init__(self, reach: Reach, of_option: list[float]):
        self.of_option, self._reach = of_option, reach
        items = len(reach[0])
        to_end = [inf] * items + [0.0]
        paid = list(zip(of_option, reach, strict=True))
        for first in range(items - 1, -1, -1):
            # An option that can't hold the item leads back to it, where `inf` is.
            to_end[first] = min([price + to_end[ends[first]] for price, ends in paid])
        self.to_end = to_end

    def cheapest(self) -> list[int]:
        """The options of the cheapest cover, limits ignored."""
        at, found = 0, []
        while at < len(self.to_end) - 1:
            costs = [
                price + self.to_end[ends[at]]
                for price, ends in zip(self.of_option, self._reach, strict=True)
            ]
            found.append(costs.index(min(costs)))
            at = self._reach[found[-1]][at]
        return found


def cover(
    problem: StageProblem, supply: Supply, reach: Reach, extra: Sequence[Limit] = ()
) -> list[int] | None:
    """Options of the stages of a cover within all limits, `extra` ones too; None when there is
    none. Stages are as long as `reach` lets them, but the last."""
    kept = _useful(problem, supply, reach, extra)
    if not kept:
        return None
    reach = tuple(reach[o] for o in kept)
    limits = [limit for limit in (*supply.linear, *extra) if limit.most > 0]
    shares = shares_of(supply, kept, limits)

    def holds(path: Sequence[int]) -> bool:
        return supply.holds(supply.total([kept[o] for o in path]), extra)

    path, cuts = priced(reach, shares, holds)
    if path is not None:
        return [kept[o] for o in path]
    return _search(supply, reach, kept, cuts, extra) if cuts else None


def shares_of(supply: Supply, kept: Sequence[int], limits: Sequence[Limit]) -> list[list[float]]:
    """What a stage on each option takes of each limit."""
    return [[limit.used(supply.steps[o]) / limit.most for limit in limits] for o in kept]


def priced(
    reach: Reach, shares: Sequence[Sequence[float]], holds: Callable[[Sequence[int]], bool]
) -> tuple[list[int] | None, list[Prices]]:
    """A cover that `holds`, if prices lead to one; else the prices that say most about what can't
    be covered, the best first: none at all where nothing can."""
    worth = [1.0 / len(shares[0])] * len(shares[0])
    cuts: list[Prices] = []
    for number in range(_ROUNDS):
        prices = [sum([w * s for w, s in zip(worth, row, strict=True)]) for row in shares]
        cut = Prices(reach, prices)
        if cut.to_end[0] > 1 + SLACK:
            return None, []
        path = cut.cheapest()
        used = [sum(column) for column in zip(*(shares[o] for o in path), strict=True)]
        if max(used) <= 1 + SLACK and holds(path):
            return path, cuts
        cuts = sorted([*cuts, cut], key=lambda c: -c.to_end[0])[:3]
        scale = 2.0 / sqrt(number + 1) / max(1.0, max(used))
        worth = [w * exp(scale * (u - 1)) for w, u in zip(worth, used, strict=True)]
        worth = [w / sum(worth) for w in worth]
    return None, cuts


def _useful(
    problem: StageProblem, supply: Supply, reach: Reach, extra: Sequence[Limit]
) -> list[int]:
    """Options that have devices and get somewhere, without those that are never better."""
    able = [
        o
        for o, ends in enumerate(reach)
        if any(end > first for first, end in enumerate(ends))
        and supply.holds(supply.steps[o], extra)
    ]
    able.sort(key=lambda o: problem.options[o].tp)
    kept: list[int] = []
    for o in able:
        option = problem.options[o]
        for other in kept:
            times, rest = divmod(option.tp, problem.options[other].tp)
            if problem.options[other].pool != option.pool or (times > 1 and rest):
                continue
            if _repeated(reach[other], times, reach[o]):
                break
        else:
            kept.append(o)
    return kept


def _repeated(ends: Sequence[int], times: int, others: Sequence[int]) -> bool:
    """Whether so many stages in turn get as far as the other one, from everywhere."""
    after = [*ends, len(ends)]
    for first, end in enumerate(others):
        at = first
        for _ in range(times):
            at = after[at]
        if at < end:
            return False
    return True


def _search(
    supply: Supply,
    reach: Reach,
    kept: Sequence[int],
    cuts: Sequence[Prices],
    extra: Sequence[Limit],
) -> list[int] | None:
    items, packed = len(reach[0]), Packed(supply)
    free = supply.by_counts_alone and not extra
    best, *others = cuts
    moves = [(o, reach[o], packed.steps[number]) for o, number in enumerate(kept)]
    furthest: dict[int, int] = {packed.start: 0}
    came: dict[int, tuple[int, int]] = {}
    # What has been paid comes with the state: prices are linear in the counts.
    queue = [(0.0, 0, packed.start, tuple(0.0 for _ in cuts))]
    while queue:
        _, back, counts, paid = heapq.heappop(queue)
        at = -back
        if furthest[counts] > at:
            continue
        for o, ends, step in moves:
            end = ends[at]
            after = counts + step
            if end == at or after & packed.over or furthest.get(after, -1) >= end:
                continue
            cost = paid[0] + best.of_option[o] + best.to_end[end]
            if cost > 1 + SLACK:
                continue
            for so_far, cut in zip(paid[1:], others, strict=True):
                cost = max(cost, so_far + cut.of_option[o] + cut.to_end[end])
            if cost > 1 + SLACK or not (free or supply.holds(packed.counts(after), extra)):
                continue
            furthest[after], came[after] = end, (counts, o)
            if end == items:
                return [kept[o] for o in _way(came, after)]
            spent = tuple([p + cut.of_option[o] for p, cut in zip(paid, cuts, strict=True)])
            # To the end first: any cover does.
            heapq.heappush(queue, (cost + best.to_end[end], -end, after, spent))
    return None


def _way(came: dict[int, tuple[int, int]], counts: int) -> list[int]:
    found = []
    while counts in came:
        counts, option = came[counts]
        found.append(option)
    return found[::-1]
