"""Which devices of a pool's nodes each stage gets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from parallel.planner.stage_problem import StageProblem, Staging
from parallel.planner.stage_supply import place


@dataclass(frozen=True)
class StagePlace:
    """Devices `[first, first + tp)` of a node of a pool; stages in turn get neighbours."""

    pool: int
    node: int
    first: int


def stage_places(problem: StageProblem, staging: Staging) -> tuple[StagePlace, ...]:
    """A place for every stage, in order; no device has two."""
    options = [problem.options[s.option] for s in staging.stages]
    left: dict[int, list[Counter[int]]] = {}
    for number, pool in enumerate(problem.pools):
        groups = Counter(o.tp for o in options if o.pool == number)
        shares = place(pool.nodes, tuple(groups.items()))
        assert shares is not None, "an answer has room"
        left[number] = [Counter(share) for share in shares]
    taken: Counter[tuple[int, int]] = Counter()
    found = []
    for o in options:
        node = next(n for n, share in enumerate(left[o.pool]) if share[o.tp])
        left[o.pool][node][o.tp] -= 1
        found.append(StagePlace(o.pool, node, taken[o.pool, node]))
        taken[o.pool, node] += o.tp
    return tuple(found)
