"""A rank's records on their way to the rank that puts them together: small, and plain JSON."""

from __future__ import annotations

import zlib
from array import array
from base64 import b85decode, b85encode
from collections.abc import Callable, Iterable
from dataclasses import astuple
from typing import Any

from parallel.instrument.spans import Kind, Record

Json = dict[str, Any]
_FIELDS = len(Record._fields)


def to_wire(
    rank: int, kinds: Iterable[Kind], records: Iterable[Record], common_ns: Callable[[int], int]
) -> Json:
    """`common_ns` takes this rank's times to the clock of all."""
    flat = array("q")
    for r in records:
        begin, end = common_ns(r.begin_ns), common_ns(r.end_ns)
        flat.extend((r.kind, r.step, begin, end, r.bytes, r.peer))
    packed = b85encode(zlib.compress(flat.tobytes(), 1)).decode()
    return {"rank": rank, "kinds": [astuple(k) for k in kinds], "records": packed}


def from_wire(body: Json) -> tuple[int, list[Kind], list[Record]]:
    flat = array("q")
    flat.frombytes(zlib.decompress(b85decode(body["records"])))
    rows = (flat[i : i + _FIELDS] for i in range(0, len(flat), _FIELDS))
    return body["rank"], [Kind(*k) for k in body["kinds"]], [Record(*row) for row in rows]
