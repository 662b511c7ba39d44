"""Spans: what a rank did from when to when, in a ring that is allocated once.

Times are nanoseconds of the rank's own monotonic clock. A record is a plain tuple, in the order of
`Record`: that is the cheapest thing that Python can write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_Row = tuple[int, int, int, int, int, int]
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


class Moment(NamedTuple):
    """The step under way: its number, its phase, its number within the phase. 0 before the
    first."""

    step: int = 0
    phase: str = ""
    ordinal: int = 0


class Samples:
    """Records of every `stride`-th step of a phase. When there are too many, every other step goes
    and the stride doubles: what is kept is spread evenly over the run, and the ranks of a replica
    keep the same steps but for the stride."""

    def __init__(self, capacity: int = SAMPLES):
        self.capacity, self.stride, self.steps = capacity, 1, 0
        self._records: list[tuple[int, _Row]] = []

    @property
    def records(self) -> list[Record]:
        return [Record(*row) for _, row in self._records]

    def add(self, ordinal: int, record: _Row) -> None:
        """`ordinal` is the step's number within the phase, from 1 on."""
        while ordinal % self.stride == 0 and len(self._records) >= self.capacity:
            self.stride *= 2
            self._records = [r for r in self._records if r[0] % self.stride == 0]
        if ordinal % self.stride == 0:
            self._records.append((ordinal, record))


class Spans:
    """The last `capacity` records, samples of each phase's collectives, the table of kinds. Without
    a capacity nothing is kept but samples. `wanted`: whether this step's collectives are kept."""

    def __init__(self, capacity: int = 0, samples: int = SAMPLES):
        self.capacity, self._most_samples = capacity, samples
        self.kinds: list[Kind] = []
        self._places: dict[Kind, int] = {}
        self._ring: list[_Row | None] = [None] * capacity
        self.reset()

    def reset(self) -> None:
        self.count = 0
        self.wanted = False
        self.now = Moment()
        self._ring[:] = [None] * self.capacity
        self._samples: dict[str, Samples] = {}

    @property
    def step(self) -> int:
        return self.now.step

    @property
    def sampled(self) -> list[Record]:
        """Of all phases."""
        return [record for samples in self._samples.values() for record in samples.records]

    def begin_step(self, phase: str) -> None:
        samples = self._samples.get(phase)
        if samples is None:
            samples = self._samples[phase] = Samples(self._most_samples)
        samples.steps += 1
        self.now = Moment(self.now.step + 1, phase, samples.steps)
        self.wanted = self.capacity > 0 or samples.steps % samples.stride == 0

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
        self, kind: int, when: Moment, begin_ns: int, end_ns: int, sent: int, peer: int
    ) -> None:
        record = (kind, when.step, begin_ns, end_ns, sent, peer)
        if self.capacity:
            self._keep(record)
        samples = self._samples.get(when.phase)
        if samples is not None:
            samples.add(when.ordinal, record)

    def _keep(self, record: _Row) -> None:
        self._ring[self.count % self.capacity] = record
        self.count += 1

    def last(self, steps: int) -> Iterator[Record]:
        """Records of the last steps in the order of their ends, as far as the ring reaches."""
        first = self.count % max(self.capacity, 1)
        for record in (*self._ring[first:], *self._ring[:first]):
            if record is not None and record[1] > self.step - steps:
                yield Record(*record)
