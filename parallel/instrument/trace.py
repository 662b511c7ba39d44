"""A trace of steps as Chrome's JSON (Trace Event Format), which Perfetto and chrome://tracing read.

A process for each rank, its threads: the parts of steps, layers, collectives, waiting for late
peers. All on rank 0's clock, microseconds since the first span.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from parallel.instrument.spans import NO_PEER, Kind, Record
from parallel.instrument.waits import GroupOf, RankStamps, calls_of_groups, entered

Json = dict[str, Any]
TRACKS = {"step": 0, "layer": 1, "collective": 2, "wait": 3}
_NAMES = ("steps", "layers", "collectives", "waiting for peers")
_COUNTED = ("weights", "kv_cache", "kv_used", "activations", "resident", "allocated", "reserved")


@dataclass(frozen=True)
class RankTrace:
    """`memory` are rows of the report's `memory_timeline`, with `stamp_ns` on the clock of all."""

    name: str
    stamps: RankStamps
    memory: list[Json]


def trace_document(ranks: Iterable[RankTrace], group_of: GroupOf, steps: int) -> Json:
    """The last `steps` steps of each rank."""
    ranks = list(ranks)
    kept = [_last_steps(rank.stamps, steps) for rank in ranks]
    origin = min((r.begin_ns for _, _, records in kept for r in records), default=0)
    end = max((r.end_ns for _, _, records in kept for r in records), default=0)

    def at(stamp_ns: int) -> float:
        return (stamp_ns - origin) / 1e3

    events: list[Json] = []
    for rank, stamps in zip(ranks, kept, strict=True):
        number = stamps[0]
        events += _titles(number, rank.name)
        events += (_span(number, record, stamps[1][record.kind], at) for record in stamps[2])
        events += _memory(number, rank.memory, at, origin, end)
    events += _waits(kept, group_of, at)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _last_steps(stamps: RankStamps, steps: int) -> RankStamps:
    rank, kinds, records = stamps
    last = max((r.step for r in records), default=0)
    return rank, kinds, [r for r in records if r.step > last - steps]


def _titles(rank: int, name: str) -> Iterator[Json]:
    yield _title(rank, "process_name", 0, name)
    for place, track in enumerate(_NAMES):
        yield _title(rank, "thread_name", place, track)


def _title(rank: int, what: str, thread: int, name: str) -> Json:
    return {"ph": "M", "pid": rank, "tid": thread, "name": what, "args": {"name": name}}


def _event(name: str, rank: int, track: str, begin: float, end: float, args: Json) -> Json:
    place = {"pid": rank, "tid": TRACKS[track]}
    return {
        "ph": "X",
        "name": name,
        "cat": track,
        **place,
        "ts": begin,
        "dur": end - begin,
        "args": args,
    }


def _span(rank: int, record: Record, kind: Kind, at: Callable[[int], float]) -> Json:
    args: Json = {"step": record.step, "phase": kind.phase}
    if kind.layer:
        args["layer"] = kind.layer
    if kind.axis:
        args |= {"axis": kind.axis, "backend": kind.backend, "bytes": record.bytes}
    if record.peer != NO_PEER:
        args["peer"] = record.peer
    name = f"{kind.name} {kind.layer}" if kind.layer else kind.name
    if kind.track == "step" and kind.name == "step":
        name = f"{kind.phase} step {record.step}"
    return _event(name, rank, kind.track, at(record.begin_ns), at(record.end_ns), args)


def _waits(
    kept: Iterable[RankStamps], group_of: GroupOf, at: Callable[[int], float]
) -> Iterator[Json]:
    for calls in calls_of_groups(kept, group_of).values():
        for rank, (record, kind), until_ns in entered(calls):
            end = min(until_ns, record.end_ns)
            if end > record.begin_ns:
                args = {"step": record.step, "phase": kind.phase, "axis": kind.axis}
                name = f"waiting in {kind.name}"
                yield _event(name, rank, "wait", at(record.begin_ns), at(end), args)


def _memory(
    rank: int,
    rows: Iterable[Mapping[str, Any]],
    at: Callable[[int], float],
    origin_ns: int,
    end_ns: int,
) -> Iterator[Json]:
    """The entries within the trace, and the last one before it at its begin."""
    rows = sorted(rows, key=lambda row: int(row["stamp_ns"]))
    before = [row for row in rows if row["stamp_ns"] < origin_ns]
    within = [row for row in rows if origin_ns <= row["stamp_ns"] <= end_ns]
    for row in (*before[-1:], *within):
        args = {cause: row[cause] for cause in _COUNTED if row.get(cause) is not None}
        when = at(max(row["stamp_ns"], origin_ns))
        yield {"ph": "C", "name": "memory (bytes)", "pid": rank, "ts": when, "args": args}
