"""The problem of cutting a chain of items into stages over unlike devices, as typed facts.

Items are transformer layers; the embedding is part of the first and the head of the last, so that
every stage has a layer. Nothing here knows a model: only seconds and bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from parallel.errors import CapacityError, LayoutError


@dataclass(frozen=True)
class Pool:
    """Devices of one type, as many as each node has: a stage's ranks stay inside a node."""

    name: str
    nodes: tuple[int, ...]
    price: float = 0.0
    """Of one device, in any unit."""

    def __post_init__(self) -> None:
        if not self.nodes or min(self.nodes) < 0:
            raise LayoutError(f"pool '{self.name}' needs its devices by node; given {self.nodes}")

    @property
    def devices(self) -> int:
        return sum(self.nodes)


@dataclass(frozen=True)
class Option:
    """What a stage may run on: `tp` devices of a pool. `seconds` and `item_bytes` of each item on
    them, bytes on the fullest rank; `stage_*` come once per stage. A stage of all items needs
    `shared_bytes` less (a table that both of its ends use)."""

    pool: int
    tp: int
    seconds: tuple[float, ...]
    item_bytes: tuple[int, ...]
    budget_bytes: int
    stage_seconds: float = 0.0
    stage_bytes: int = 0
    shared_bytes: int = 0


@dataclass(frozen=True)
class StageProblem:
    """`hop_seconds[a][b]`: from a stage on option a to the next one, on option b; () costs
    nothing. A stage's time is without hops: sends run beside other batches."""

    pools: tuple[Pool, ...]
    options: tuple[Option, ...]
    hop_seconds: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.options or not self.options[0].seconds:
            raise LayoutError("stages need at least one option and one item")
        for o in self.options:
            if not len(o.seconds) == len(o.item_bytes) == self.items:
                raise LayoutError("every option needs seconds and bytes of every item")
            if not 0 <= o.pool < len(self.pools) or o.tp < 1:
                raise LayoutError(f"option tp={o.tp} of pool {o.pool} doesn't exist")
            if min(*o.seconds, *o.item_bytes, o.stage_seconds, o.stage_bytes) < 0:
                raise LayoutError("seconds and bytes of items can't be negative")
            if not 0 <= o.shared_bytes <= min(o.item_bytes[0], o.item_bytes[-1]):
                raise LayoutError("what both ends share is part of each of them")
        rows = [len(row) for row in self.hop_seconds]
        if rows and rows != [len(self.options)] * len(self.options):
            raise LayoutError("hop_seconds needs a row and a column for every option")

    @property
    def items(self) -> int:
        return len(self.options[0].seconds)

    def hop(self, before: int, after: int) -> float:
        return self.hop_seconds[before][after] if self.hop_seconds else 0.0


@dataclass(frozen=True)
class StageRun:
    """Items `[first, end)` on an option (its number)."""

    first: int
    end: int
    option: int


@dataclass(frozen=True)
class Staging:
    """An answer: stages in order. `total_seconds`: one batch through all of them, hops included.
    `proven`: no other cut is better by the objective asked for; else the search was given up."""

    stages: tuple[StageRun, ...]
    bottleneck_seconds: float
    total_seconds: float
    devices: int
    price: float
    proven: bool = True

    def round_seconds(self, batches: int) -> float:
        """Until each of `batches` in flight has had one step: a full pipeline takes as long as
        its slowest stage has for all of them, and none is through sooner than one batch is."""
        return max(batches * self.bottleneck_seconds, self.total_seconds)

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(s.end - s.first for s in self.stages)


class NoStaging(CapacityError):
    """No cut exists. `kind`: 'item' (one fits nowhere), 'devices' (no node has the devices of any
    option), 'memory' (all devices together don't hold the chain), 'time' (not within the limit).
    `missing_bytes`: the least by which every device would have to be larger, None where memory
    isn't what lacks."""

    def __init__(self, kind: str, reason: str, missing_bytes: int | None = None):
        super().__init__(reason)
        self.kind, self.missing_bytes = kind, missing_bytes


def stage_bytes(option: Option, first: int, end: int) -> int:
    shared = option.shared_bytes if end - first == len(option.seconds) else 0
    return option.stage_bytes + sum(option.item_bytes[first:end]) - shared
