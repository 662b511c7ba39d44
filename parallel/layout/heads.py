"""The head map: which query and KV heads each tensor-parallel rank holds.

Three choices, all exact:

- `groups`: whole KV groups; no KV head is held twice. Needs tp ≤ KV heads.
- `replicate`: query heads as even as can be; a KV head is held by every rank that needs it.
- `padded`: as `replicate`, and each KV head's queries are padded with zeros to the same number,
  the uniform ratio that fused grouped-query kernels need.

`auto` takes the one whose fullest rank holds the fewest bytes of projections and cache (each
decode step reads them all), then the one with the fewest bytes in all, then `groups`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from parallel.errors import LayoutError, did_you_mean
from parallel.layout.split import Piece, even_split, scale

CHOICES = ("auto", "groups", "replicate", "padded")
_PAD = -1


@dataclass(frozen=True)
class RankHeads:
    """One rank's heads. `queries` are global query heads in local order (-1: padding),
    `kv` the global KV heads, `kv_of_query` the local KV head that each local query uses."""

    queries: tuple[int, ...]
    kv: tuple[int, ...]
    kv_of_query: tuple[int, ...]

    @cached_property
    def group(self) -> int:
        """Most queries that share one local KV head."""
        return max(self.kv_of_query.count(k) for k in range(len(self.kv)))

    @cached_property
    def uniform(self) -> bool:
        """Every local KV head serves the same number of queries, in order."""
        return self.kv_of_query == tuple(k for k in range(len(self.kv)) for _ in range(self.group))

    @cached_property
    def slots(self) -> tuple[int, ...]:
        """Where each query stands in a `[kv, group]` grid."""
        seen = [0] * len(self.kv)
        out = []
        for k in self.kv_of_query:
            out.append(k * self.group + seen[k])
            seen[k] += 1
        return tuple(out)

    def query_rows(self, head_dim: int) -> tuple[Piece, ...]:
        return scale(tuple(_piece(q) for q in self.queries), head_dim)

    def kv_rows(self, head_dim: int) -> tuple[Piece, ...]:
        return scale(tuple(_piece(k) for k in self.kv), head_dim)


def _piece(head: int) -> Piece:
    return Piece(0, 1, padding=True) if head == _PAD else Piece(head, head + 1)


@lru_cache(maxsize=256)
def head_map(heads: int, kv_heads: int, tp: int, choice: str = "auto") -> tuple[RankHeads, ...]:
    """The heads of each of `tp` ranks.

    Raises `LayoutError` when `tp` exceeds the heads, or the choice can't be had."""
    if choice not in CHOICES:
        raise LayoutError(
            f"heads='{choice}' is unknown{did_you_mean(choice, CHOICES)}; "
            f"known: {', '.join(CHOICES)}"
        )
    if tp > heads:
        raise LayoutError(f"tp={tp} is more than the {heads} query heads; legal here: 1 to {heads}")
    if choice == "groups":
        if tp > kv_heads:
            raise LayoutError(
                f"heads=groups keeps whole KV groups: tp={tp} is more than the {kv_heads} KV "
                f"heads; legal here: tp 1 to {kv_heads}, or heads=replicate"
            )
        return _groups(heads, kv_heads, tp)
    if choice == "replicate":
        return _replicate(heads, kv_heads, tp)
    if choice == "padded":
        return tuple(_pad(r) for r in _replicate(heads, kv_heads, tp))
    candidates = [_groups(heads, kv_heads, tp)] if tp <= kv_heads else []
    candidates += [_replicate(heads, kv_heads, tp)]
    return min(candidates, key=_cost)


def _cost(ranks: tuple[RankHeads, ...]) -> tuple[int, int]:
    """Rows of q, k, v and output projections in heads: the fullest rank, then all."""
    sizes = [2 * len(r.queries) + 2 * len(r.kv) for r in ranks]
    return max(sizes), sum(sizes)


def _ranks(shares: tuple[Piece, ...], group: int) -> tuple[RankHeads, ...]:
    out = []
    for share in shares:
        queries = tuple(range(share.begin, share.end))
        kv = tuple(sorted({q // group for q in queries}))
        out.append(RankHeads(queries, kv, tuple(kv.index(q // group) for q in queries)))
    return tuple(out)


def _groups(heads: int, kv_heads: int, tp: int) -> tuple[RankHeads, ...]:
    group = heads // kv_heads
    shares = (Piece(p.begin * group, p.end * group) for p in even_split(kv_heads, tp))
    return _ranks(tuple(shares), group)


def _replicate(heads: int, kv_heads: int, tp: int) -> tuple[RankHeads, ...]:
    """Even shares; where there are more ranks than KV heads, shares that end at a group's border
    if they are no larger, since then each rank holds a single KV head."""
    group = heads // kv_heads
    even = _ranks(even_split(heads, tp), group)
    if tp < kv_heads:
        return even
    aligned: list[Piece] = []
    for g, ranks in enumerate(even_split(tp, kv_heads)):
        aligned += [
            Piece(g * group + p.begin, g * group + p.end) for p in even_split(group, ranks.size)
        ]
    return min(even, _ranks(tuple(aligned), group), key=_cost)


def _pad(rank: RankHeads) -> RankHeads:
    queries, kv_of_query = [], []
    for k in range(len(rank.kv)):
        own = [q for q, used in zip(rank.queries, rank.kv_of_query, strict=True) if used == k]
        queries += own + [_PAD] * (rank.group - len(own))
        kv_of_query += [k] * rank.group
    return RankHeads(tuple(queries), rank.kv, tuple(kv_of_query))
