"""Sequences that wait for a place or for room, in the order in which they get it."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from parallel.scheduling.sequence import Sequence


class WaitingQueue:
    """By priority, then as they came. One that was preempted is back at its old place."""

    def __init__(self) -> None:
        self._order: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Sequence:
        return self._order[index]

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._order)

    def add(self, sequence: Sequence) -> None:
        insort(self._order, sequence, key=lambda s: s.seniority)

    def remove(self, sequence: Sequence) -> None:
        index = bisect_left(self._order, sequence.seniority, key=lambda s: s.seniority)
        assert self._order[index] is sequence
        del self._order[index]
