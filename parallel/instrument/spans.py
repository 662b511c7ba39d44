"""Spans: what a rank did from when to when, in a ring that is allocated once.

Times are nanoseconds of the rank's own monotonic clock. A record is a plain tuple, in the order of
`Record`: that is the cheapest thing that Python can write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

NO_PEER = -1
SAMPLES = 2048


@dataclass(frozen=True)
class Kind:
    """What spans are of: `name` is an operation or a part of a step; `axis` and `backend` are
    those of a collective, empty otherwise; `track` is `step`, `layer` or `collective`."""

    track: str
    name: str
    phase: str
    layer: str = ""
    axis: str = ""
    backend: str = ""


class Record(NamedTuple):
    """`kind` is a place in the table of kinds; `step` counts the rank's steps; `peer` is the rank
    at the other end of a send or a receive."""

    kind: int
    step: int
    begin_ns: int
    end_ns: int
    bytes: int
    peer: int


class Samples:
    """Records of every `stride`-th step; none of step 0, before the first. When there are too
    many, every other step goes and the stride doubles: what is kept is spread evenly over the run,
    and the ranks of a replica keep the same steps but for the stride."""

    def __init__(self, capacity: int = SAMPLES):
        self.capacity, self.stride = capacity, 1
        self.records: list[tuple[int, int, int, int, int, int]] = []

    def add(self, record: tuple[int, int, int, int, int, int]) -> None:
        step = record[1]
        while step % self.stride == 0 and len(self.records) >= self.capacity:
            self.stride *= 2
            self.records = [r for r in self.records if r[1] % self.stride == 0]
        if step and step % self.stride == 0:
            self.records.append(record)


class Spans:
    """The last `capacity` records, the samples of collectives, the table of kinds. Without a
    capacity nothing is kept but samples. `wanted`: whether this step's collectives are kept."""

    def __init__(self, capacity: int = 0, samples: int = SAMPLES):
        self.capacity, self._most_samples = capacity, samples
        self.kinds: list[Kind] = []
        self._places: dict[Kind, int] = {}
        self._ring: list[tuple[int, int, int, int, int, int] | None] = [None] * capacity
        self.reset()

    def reset(self) -> None:
        self.step = self.count = 0
        self.wanted = False
        self._ring[:] = [None] * self.capacity
        self.samples = Samples(self._most_samples)

    def begin_step(self) -> None:
        self.step += 1
        self.wanted = self.capacity > 0 or self.step % self.samples.stride == 0

    def place(self, kind: Kind) -> int:
        """The place of a kind in the table, where it is entered once."""
        found = self._places.get(kind)
        if found is None:
            found = self._places[kind] = len(self.kinds)
            self.kinds.append(kind)
        return found

    def add(
        self, kind: int, step: int, begin_ns: int, end_ns: int, sent: int = 0, peer: int = NO_PEER
    ) -> None:
        """Nothing without a ring."""
        if self.capacity:
            self._keep((kind, step, begin_ns, end_ns, sent, peer))

    def add_collective(
        self, kind: int, step: int, begin_ns: int, end_ns: int, sent: int, peer: int
    ) -> None:
        record = (kind, step, begin_ns, end_ns, sent, peer)
        if self.capacity:
            self._keep(record)
        if step and step % self.samples.stride == 0:
            self.samples.add(record)

    def _keep(self, record: tuple[int, int, int, int, int, int]) -> None:
        self._ring[self.count % self.capacity] = record
        self.count += 1

    def last(self, steps: int) -> Iterator[Record]:
        """Records of the last steps in the order of their ends, as far as the ring reaches."""
        first = self.count % max(self.capacity, 1)
        for record in (*self._ring[first:], *self._ring[:first]):
            if record is not None and record[1] > self.step - steps:
                yield Record(*record)
