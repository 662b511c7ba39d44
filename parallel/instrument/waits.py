"""Waiting for late peers, told from transfer by the times at which the ranks entered each call.

A collective can't end before its last rank has entered: until then a rank waits. A receiver waits
until its sender has begun to send. Known for the sampled calls that all their ranks have kept; a
row's waiting is their share of its seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from parallel.instrument.spans import Kind, Record

Row = dict[str, Any]
GroupOf = Callable[[str, int], tuple[int, ...]]
RankStamps = tuple[int, list[Kind], list[Record]]
"""A rank, its table of kinds, its records on the clock of all."""


@dataclass
class Waited:
    calls: int = 0
    nanoseconds: int = 0
    waited_ns: int = 0

    def add(self, record: Record, until_ns: int) -> None:
        took = record.end_ns - record.begin_ns
        self.calls += 1
        self.nanoseconds += took
        self.waited_ns += min(max(until_ns - record.begin_ns, 0), took)


_Call = tuple[Record, Kind]
_Found = dict[tuple[int, Kind], Waited]


def split_waits(rows: Iterable[Row], stamps: Iterable[RankStamps], group_of: GroupOf) -> list[Row]:
    """Fills `wait_seconds`, `transfer_seconds` and `sampled_calls`; they stay None, and 0, where
    no call of a row was kept by all its ranks."""
    found = measure_waits(stamps, group_of)
    out = []
    for row in rows:
        kind = Kind("collective", *(row[k] for k in ("op", "phase", "layer", "axis", "backend")))
        waited = found.get((row["rank"], kind))
        if waited is None:
            out.append(row)
            continue
        share = waited.waited_ns / waited.nanoseconds if waited.nanoseconds else 0.0
        wait = share * row["seconds"]
        split = {"wait_seconds": wait, "transfer_seconds": row["seconds"] - wait}
        out.append({**row, **split, "sampled_calls": waited.calls})
    return out


def measure_waits(stamps: Iterable[RankStamps], group_of: GroupOf) -> _Found:
    found: _Found = {}
    for ranks_calls in calls_of_groups(stamps, group_of).values():
        for rank, call, until_ns in entered(ranks_calls):
            record, kind = call
            found.setdefault((rank, kind), Waited()).add(record, until_ns)
    return found


def calls_of_groups(
    stamps: Iterable[RankStamps], group_of: GroupOf
) -> dict[tuple[str, tuple[int, ...], int], dict[int, list[_Call]]]:
    """Calls in the order in which they began, by axis and group, step and rank."""
    groups: dict[tuple[str, tuple[int, ...], int], dict[int, list[_Call]]] = {}
    for rank, kinds, records in stamps:
        for record in sorted(records, key=lambda r: r.begin_ns):
            kind = kinds[record.kind]
            if kind.track != "collective":
                continue
            group = group_of(kind.axis, rank)
            calls = groups.setdefault((kind.axis, group, record.step), {r: [] for r in group})
            calls[rank].append((record, kind))
    return groups


def entered(calls: Mapping[int, list[_Call]]) -> Iterable[tuple[int, _Call, int]]:
    """For one group and step: each call with its rank, and when the last of those it waits for
    came. Nothing where a rank hasn't kept the step whole."""
    yield from _collectives(calls)
    sends: dict[tuple[int, int], list[_Call]] = {}
    for rank, own in calls.items():
        for call in own:
            if call[1].name == "send":
                sends.setdefault((rank, call[0].peer), []).append(call)
                yield rank, call, call[0].begin_ns
    for rank, own in calls.items():
        for peer in {record.peer for record, kind in own if kind.name == "recv"}:
            received = [c for c in own if c[1].name == "recv" and c[0].peer == peer]
            sent = sends.get((peer, rank), [])
            if len(sent) == len(received):
                for call, (start, _) in zip(received, sent, strict=True):
                    yield rank, call, start.begin_ns


def _collectives(calls: Mapping[int, list[_Call]]) -> Iterable[tuple[int, _Call, int]]:
    whole = {r: [c for c in own if c[1].name not in ("send", "recv")] for r, own in calls.items()}
    if len({len(own) for own in whole.values()}) != 1:
        return
    for together in zip(*whole.values(), strict=True):
        last_ns = max(record.begin_ns for record, _ in together)
        for rank, call in zip(whole, together, strict=True):
            yield rank, call, last_ns
