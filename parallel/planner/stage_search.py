"""The best stages of a chain on unlike devices, by several objectives (docs/search.md).

Minimising the difference between the slowest and the fastest stage, as is sometimes done, is
another problem: even stages may all be slow. Here the slowest stage itself is made fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import floor, inf

from parallel.planner.stage_chain import Chain, Reach
from parallel.planner.stage_order import least_sum
from parallel.planner.stage_problem import NoStaging, StageProblem, Staging, stage_bytes
from parallel.planner.stage_reach import cover
from parallel.planner.stage_supply import Limit, Supply
from parallel.planner.stage_total import least_total
from parallel.units import format_bytes, format_seconds

_SAME = 1e-12
"""Share of a time below which two are the same: sums in another order."""
_APART = 1e-9
"""Share by which the next point of a front is better."""

Limits = tuple[Limit, ...]


class StageSearch:
    """Answers to one problem. All raise `NoStaging` when there is none."""

    def __init__(self, problem: StageProblem):
        self.problem = problem
        self._chain, self._supply = Chain(problem), Supply(problem)

    def bottleneck(self, within: Limits = ()) -> Staging:
        """The least time of the slowest stage: tokens per second of a full pipeline. The limit is
        bisected; from one that fails it goes to the next at which some stage gets further."""
        best = self._cover(self._chain.reach(), within)
        if best is None:
            raise self._no_room()
        low = self._slowest_item()
        while low < best.bottleneck_seconds * (1 - _SAME):
            reach = self._chain.reach((low + best.bottleneck_seconds) / 2)
            found = self._cover(reach, within)
            if found is None:
                low = self._chain.next_seconds(reach)
            else:
                best = found
        return best

    def latency(self, limit_seconds: float = inf, enough_seconds: float = 0.0) -> Staging:
        """The least time of one batch through all stages, none slower than the limit; or any that
        is quick enough."""
        reach = self._chain.reach(limit_seconds)
        known = self._known(reach, limit_seconds)
        return least_total(self._chain, self._supply, reach, known, enough_seconds)

    def throughput(self, batches: int, share: float = 1e-3) -> Staging:
        """The least time of a round of `batches` in flight, max(batches·slowest, all stages), at
        most `share` above the least possible. With the limit on stages the first grows and the
        second falls, so that limit is bisected."""
        low = self.bottleneck().bottleneck_seconds
        best, fast = self.latency(low, enough_seconds=batches * low), self.latency()
        least, high = fast.total_seconds, fast.bottleneck_seconds
        proven = best.proven and fast.proven
        best = min(best, fast, key=lambda s: s.round_seconds(batches))
        while low < high * (1 - _SAME):
            # Between the limits no round is shorter than this.
            bound = max(batches * low, least)
            if best.round_seconds(batches) <= bound * (1 + share):
                break
            middle = (low + high) / 2
            found = self.latency(middle, enough_seconds=batches * middle)
            best = min(best, found, key=lambda s: s.round_seconds(batches))
            proven = proven and found.proven
            if found.total_seconds > batches * middle:
                low = self._chain.next_seconds(self._chain.reach(middle))
            else:
                high = middle
        return replace(best, proven=proven)

    def front(self, most: int | None = None) -> list[Staging]:
        """From the least total to the least bottleneck, none better in both. All of them, or at
        most so many, whose limits on stages grow by the same factor."""
        least, found = self.bottleneck().bottleneck_seconds, [self.latency()]
        if most is not None:
            wide = found[0].bottleneck_seconds / least if least else 1.0
            steps = range(most - 2, -1, -1)
            found += [self.latency(least * wide ** (i / max(1, most - 1))) for i in steps]
        while most is None and found[-1].bottleneck_seconds * (1 - _APART) >= least:
            found.append(self.latency(found[-1].bottleneck_seconds * (1 - _APART)))
        kept: list[Staging] = []
        for answer in sorted(found, key=lambda s: (s.bottleneck_seconds, s.total_seconds)):
            if not kept or answer.total_seconds < kept[-1].total_seconds * (1 - _APART):
                kept.append(answer)
        return kept[::-1]

    def fewest_devices(self, limit_seconds: float = inf) -> Staging:
        """On so few devices that fewer don't do; then the least bottleneck."""
        return self._fewest(limit_seconds, self._supply.devices, lambda s: s.devices, whole=True)

    def cheapest(self, limit_seconds: float = inf) -> Staging:
        """At the least price of all devices; then the least bottleneck."""
        return self._fewest(limit_seconds, self._supply.price, lambda s: s.price, whole=False)

    def least_cost(self, share: float = 1e-2) -> Staging:
        """The least price·bottleneck, a full pipeline's cost per token, at most `share` above the
        least possible. Ranges of prices are cut in halves while they may hold something better:
        none costs less there than its least price times the bottleneck of its highest."""
        cheap, fast = self.cheapest(), self.bottleneck()
        best = min(cheap, fast, key=_cost)
        ranges = [(cheap.price, fast.price, fast.bottleneck_seconds)]
        while ranges:
            low, high, seconds = ranges.pop()
            if low * seconds >= _cost(best) * (1 - share) or low >= high * (1 - _APART):
                continue
            middle = (low + high) / 2
            found = self.bottleneck((self._supply.price(middle),))
            best = min(best, found, key=_cost)
            ranges.append((middle, high, seconds))
            ranges.append((low, found.price, found.bottleneck_seconds))
        return best

    def _fewest(
        self,
        limit_seconds: float,
        limit: Callable[[float], Limit],
        figure: Callable[[Staging], float],
        whole: bool,
    ) -> Staging:
        reach = self._chain.reach(limit_seconds)
        best, low = self._known(reach, limit_seconds), 0.0
        while low < figure(best) * (1 - _APART):
            middle = (low + figure(best)) / 2
            found = self._cover(reach, (limit(middle),))
            if found is None:
                low = floor(middle) + 1 if whole else middle
            else:
                best = found
        return self.bottleneck((limit(figure(best)),))

    def missing_bytes(self) -> int:
        """The least by which every device would have to be larger for the chain to fit; 0 when it
        fits. Raises `NoStaging` when memory isn't what lacks."""
        if not any(self._supply.holds(step) for step in self._supply.steps):
            raise self._no_room()
        low, high = -1, max(sum(o.item_bytes) + o.stage_bytes for o in self.problem.options)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits_with(middle) else (middle, high)
        return high

    def _fits_with(self, more_bytes: int) -> bool:
        larger = [
            replace(o, budget_bytes=o.budget_bytes + more_bytes) for o in self.problem.options
        ]
        reach = Chain(replace(self.problem, options=tuple(larger))).reach()
        return cover(self.problem, self._supply, reach) is not None

    def _known(self, reach: Reach, limit_seconds: float) -> Staging:
        """Some cut, on the largest groups that do: fewer stages take less time in all."""
        nowhere = tuple(range(self.problem.items))
        for least in sorted({o.tp for o in self.problem.options}, reverse=True):
            large = zip(self.problem.options, reach, strict=True)
            found = self._cover(tuple(r if o.tp >= least else nowhere for o, r in large))
            if found is not None:
                return found
        if limit_seconds < inf:
            least_seconds = self.bottleneck().bottleneck_seconds
            raise NoStaging(
                "time",
                f"no stages are all within {format_seconds(limit_seconds)}; the least that the "
                f"slowest can take is {format_seconds(least_seconds)}",
            )
        raise self._no_room()

    def _cover(self, reach: Reach, within: Limits = ()) -> Staging | None:
        options = cover(self.problem, self._supply, reach, within)
        if options is None:
            return None
        stages = least_sum(self._chain, reach, options)
        assert stages is not None, "a cover reaches the end"
        return self._chain.evaluate(stages)

    def _slowest_item(self) -> float:
        """No stage that holds it can be faster."""
        able = [o for o, step in enumerate(self._supply.steps) if self._supply.holds(step)]
        items = range(self.problem.items)
        return max(min(self._chain.seconds(o, i, i + 1) for o in able) for i in items)

    def _no_room(self) -> NoStaging:
        """Why there is no cut, whatever its times."""
        problem, devices = self.problem, sum(p.devices for p in self.problem.pools)
        able = [
            o
            for o, step in zip(problem.options, self._supply.steps, strict=True)
            if self._supply.holds(step)
        ]
        if not able:
            return NoStaging(
                "devices",
                f"no node has the devices of a stage: {min(o.tp for o in problem.options)}",
            )
        missing = self.missing_bytes()
        for item in range(problem.items):
            lacks = min(stage_bytes(o, item, item + 1) - o.budget_bytes for o in able)
            if lacks > 0:
                return NoStaging(
                    "item",
                    f"item {item} fits nowhere: alone it needs {format_bytes(lacks)} more",
                    missing,
                )
        return NoStaging(
            "memory",
            f"{devices} devices together don't hold {problem.items} items; each would have to be "
            f"{format_bytes(missing)} larger",
            missing,
        )


def _cost(staging: Staging) -> float:
    return staging.price * staging.bottleneck_seconds
