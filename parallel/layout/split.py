"""Contiguous, possibly uneven, pieces of a dimension."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Piece:
    """Indices `[begin, end)` of the whole dimension; `padding` rows are zeros of no origin."""

    begin: int
    end: int
    padding: bool = False

    @property
    def size(self) -> int:
        return self.end - self.begin


def even_split(total: int, parts: int, unit: int = 1) -> tuple[Piece, ...]:
    """`parts` neighbouring pieces whose sizes differ by one `unit` at most (the last one also
    carries what `unit` doesn't divide)."""
    units = -(-total // unit)
    bounds = [min(total, (units * i + parts - 1) // parts * unit) for i in range(parts + 1)]
    return tuple(Piece(a, b) for a, b in pairwise(bounds))


def column_unit(width: int, parts: int) -> int:
    """The granule that FFN columns are dealt in: 64 where that costs no balance worth naming,
    less for narrow layers, so that kernels see round sizes."""
    unit = 64
    while unit > 1 and width < 8 * unit * parts and width % (unit * parts):
        unit //= 2
    return unit


def scale(pieces: tuple[Piece, ...], factor: int) -> tuple[Piece, ...]:
    """Pieces of heads as pieces of rows, neighbours merged."""
    out: list[Piece] = []
    for p in pieces:
        begin, end = p.begin * factor, p.end * factor
        if out and not p.padding and not out[-1].padding and out[-1].end == begin:
            out[-1] = Piece(out[-1].begin, end)
        else:
            out.append(Piece(begin, end, p.padding))
    return tuple(out)
