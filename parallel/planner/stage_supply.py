"""The devices that stages use up, counted, and whether groups of them have room in the nodes.

Where sizes of groups divide each other and fill every node, a pool needs one count, its devices:
groups then always find room. Otherwise each size is counted by itself, and whether the groups have
room in the nodes is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from parallel.planner.stage_problem import StageProblem

Counts = tuple[int, ...]


@dataclass(frozen=True)
class Limit:
    """Σ coefficients·counts ≤ most."""

    coefficients: tuple[float, ...]
    most: float

    def used(self, counts: Counts) -> float:
        return sum(c * n for c, n in zip(self.coefficients, counts, strict=True))


class Supply:
    """`steps[o]` is what a stage on option o adds to the counts, `most` what each count may come
    to, `sums` the limits on several of them. Counts in one integer: a field for each with a bit
    above it that is set once the count is over its limit, so that adding needs no loop."""

    def __init__(self, problem: StageProblem):
        self._pools = problem.pools
        columns: dict[tuple[int, int], int] = {}
        self._tried: list[tuple[tuple[int, ...], list[tuple[int, int]]]] = []
        most: list[int] = []
        for number, pool in enumerate(problem.pools):
            sizes = sorted({o.tp for o in problem.options if o.pool == number})
            if fills(sizes, pool.nodes):
                columns |= {(number, tp): len(most) for tp in sizes}
                most.append(pool.devices)
                continue
            own = {tp: len(most) + i for i, tp in enumerate(sizes)}
            columns |= {(number, tp): column for tp, column in own.items()}
            most += [sum(n // tp for n in pool.nodes) for tp in sizes]
            self._tried.append((pool.nodes, list(own.items())))
        self.most, width = tuple(most), len(most)
        self.steps: list[Counts] = []
        self._devices, self._prices = [0.0] * width, [0.0] * width
        alone = {column: size for _, own in self._tried for size, column in own}
        for o in problem.options:
            column = columns[o.pool, o.tp]
            each = alone.get(column, 1)
            self.steps.append(tuple(o.tp // each if i == column else 0 for i in range(width)))
            self._devices[column] = each
            self._prices[column] = each * problem.pools[o.pool].price
        self.sums = tuple(
            Limit(tuple(float(dict(own).get(i, 0)) for i in range(width)), float(sum(nodes)))
            for nodes, own in ((n, [(c, s) for s, c in own]) for n, own in self._tried)
        )

    def devices(self, most: float) -> Limit:
        """On devices of all pools."""
        return Limit(tuple(self._devices), most)

    def price(self, most: float) -> Limit:
        # Prices are added in another order elsewhere.
        return Limit(tuple(self._prices), most * (1 + 1e-12))

    def total(self, options: Sequence[int]) -> Counts:
        """Used by stages on these options."""
        columns = zip(*(self.steps[o] for o in options), strict=True)
        return tuple(sum(column) for column in columns)

    def holds(self, counts: Counts, limits: Sequence[Limit] = ()) -> bool:
        """Within everything, `limits` of one's own as well."""
        return (
            all(n <= most for n, most in zip(counts, self.most, strict=True))
            and all(limit.used(counts) <= limit.most for limit in (*self.sums, *limits))
            and all(
                has_room(nodes, tuple((size, counts[column]) for size, column in own))
                for nodes, own in self._tried
            )
        )

    @property
    def linear(self) -> tuple[Limit, ...]:
        """All limits that are sums."""
        one_each = (
            Limit(tuple(float(i == column) for i in range(len(self.most))), float(most))
            for column, most in enumerate(self.most)
        )
        return (*one_each, *self.sums)

    @property
    def by_counts_alone(self) -> bool:
        """Whether counts within `most` are all that there is to keep."""
        return not self._tried


class Packed:
    """Counts in one integer."""

    def __init__(self, supply: Supply):
        self._fields: list[tuple[int, int, int]] = []
        self.start = self.over = shift = 0
        for most in supply.most:
            bits = max(most, 1).bit_length()
            # Counted from 2^bits - 1 - most, so that one more than `most` sets the bit above.
            first = (1 << bits) - 1 - most
            self._fields.append((shift, (1 << bits + 1) - 1, first))
            self.start |= first << shift
            self.over |= 1 << (shift + bits)
            # A step is at most as large as its limit, so a field never runs into the next.
            shift += bits + 2
        self.steps = [
            sum(n << field[0] for n, field in zip(step, self._fields, strict=True))
            for step in supply.steps
        ]

    def counts(self, packed: int) -> Counts:
        return tuple((packed >> shift & mask) - first for shift, mask, first in self._fields)


def fills(sizes: Sequence[int], nodes: Sequence[int]) -> bool:
    """Whether groups of these sizes find room whenever there are devices enough: each size divides
    the next larger one, and the largest every node."""
    chain = all(large % small == 0 for small, large in pairwise(sizes))
    return not sizes or (chain and all(node % sizes[-1] == 0 for node in nodes))


@lru_cache(maxsize=1 << 16)
def has_room(nodes: tuple[int, ...], groups: tuple[tuple[int, int], ...]) -> bool:
    """Whether `(size, count)` groups can be placed in the nodes."""
    return place(nodes, groups) is not None


def place(
    nodes: tuple[int, ...], groups: tuple[tuple[int, int], ...]
) -> tuple[dict[int, int], ...] | None:
    """How many groups of each size every node gets, None where they have no room. Exact: node by
    node, every way to fill it that leaves no room for one group more."""
    wanted = {size: count for size, count in groups if count}
    sizes = sorted(wanted, reverse=True)
    order = sorted(range(len(nodes)), key=lambda n: -nodes[n])
    failed: set[tuple[int, Counts]] = set()
    found: list[dict[int, int]] = [{} for _ in nodes]

    def fit(at: int, left: Counts) -> bool:
        if not any(left):
            return True
        if at == len(order) or (at, left) in failed:
            return False
        for taken in _fillings(nodes[order[at]], sizes, left):
            if fit(at + 1, tuple(a - b for a, b in zip(left, taken, strict=True))):
                found[order[at]] = dict(zip(sizes, taken, strict=True))
                return True
        failed.add((at, left))
        return False

    return tuple(found) if fit(0, tuple(wanted[s] for s in sizes)) else None


def _fillings(room: int, sizes: Sequence[int], left: Counts) -> list[Counts]:
    """Largest groups first; only those to which no group can be added."""
    found: list[Counts] = []

    def fill(room: int, taken: Counts) -> None:
        at = len(taken)
        if at < len(sizes):
            for count in range(min(left[at], room // sizes[at]), -1, -1):
                fill(room - count * sizes[at], (*taken, count))
        elif all(n == t or s > room for s, n, t in zip(sizes, left, taken, strict=True)):
            found.append(taken)

    fill(room, ())
    return found
