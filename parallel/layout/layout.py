"""A layout: who holds what. The planner counts bytes by it, the runtime allocates by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from parallel.architecture.spec import Attention, ModelSpec, Parameter, Role
from parallel.errors import LayoutError
from parallel.layout import stages as stage_cuts
from parallel.layout.degrees import Coordinates, Degrees
from parallel.layout.heads import RankHeads, head_map
from parallel.layout.split import Piece, column_unit, even_split
from parallel.layout.stages import Stage

_BY_QUERY_HEADS = (Role.QUERY,)
_BY_KV_HEADS = (Role.KEY, Role.VALUE)
_BY_COLUMNS = (Role.GATE, Role.UP)
_BY_ROWS_OF_VOCABULARY = (Role.TOKEN_EMBEDDING, Role.HEAD)
_ADDED_ONCE = (Role.ATTENTION_OUTPUT, Role.DOWN)


@dataclass(frozen=True)
class Shard:
    """What one rank holds of a parameter: `pieces` of dimension `dim`; all of it if `dim` is None.

    `shape` is the local shape, padding included."""

    parameter: Parameter
    dim: int | None
    pieces: tuple[Piece, ...]
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Degrees, stage cuts and the head choice for one model."""

    spec: ModelSpec
    degrees: Degrees
    stages: tuple[Stage, ...]
    heads: str = "auto"

    @classmethod
    def make(
        cls,
        spec: ModelSpec,
        degrees: Degrees,
        stages: Sequence[int] | None = None,
        heads: str = "auto",
    ) -> Layout:
        """Cuts and checks. Raises `LayoutError` naming the nearest legal choices."""
        check_degrees(spec, degrees)
        for tp in degrees.stage_tp or (degrees.tp,):
            for a in {(b.attention.heads, b.attention.kv_heads) for b in spec.blocks}:
                head_map(*a, tp, heads)
        if stages is not None:
            cuts = stage_cuts.given(stages, spec.layers, degrees.pp)
        else:
            costs = [float(sum(p.elements for p in layer)) for layer in spec.by_layer]
            head = float(spec.vocabulary * spec.hidden)
            cuts = stage_cuts.balanced(costs, 0.0, head, degrees.pp, degrees.stage_tp)
        return cls(spec, degrees, cuts, heads)

    def rank_heads(self, attention: Attention, at: Coordinates) -> RankHeads:
        tp = self.degrees.tp_of(at.pp)
        return head_map(attention.heads, attention.kv_heads, tp, self.heads)[at.tp]

    def vocabulary(self, pp: int) -> tuple[Piece, ...]:
        """Rows of the embedding and of the head on stage `pp`, by tp coordinate."""
        return even_split(self.spec.vocabulary, self.degrees.tp_of(pp))

    def columns(self, width: int, at: Coordinates) -> Piece:
        """FFN columns of a rank."""
        tp = self.degrees.tp_of(at.pp)
        return even_split(width, tp, column_unit(width, tp))[at.tp]

    def stage(self, rank: int) -> Stage:
        return self.stages[self.degrees.coordinates(rank).pp]

    def shards(self, rank: int) -> tuple[Shard, ...]:
        """Every parameter that the rank holds, a tied table once per stage that uses it."""
        at = self.degrees.coordinates(rank)
        return tuple(self._held(self.spec.parameters, at, self.stages[at.pp]))

    def weight_elements(self, rank: int) -> int:
        """Elements of all shards of the rank; replicas hold the same."""
        at = self.degrees.coordinates(rank)
        if (at.tp, at.pp) not in self._elements:
            self._elements[at.tp, at.pp] = self._count(at)
        return self._elements[at.tp, at.pp]

    def _count(self, at: Coordinates) -> int:
        """Layers that are alike are counted once."""
        stage, alike = self.stages[at.pp], self.spec.alike
        outer = sum(s.elements for s in self._held(self._outer, at, stage))
        tp = self.degrees.tp_of(at.pp)
        for i in stage.layers:
            key = (alike[i], at.tp, tp)
            if key not in self._layer_elements:
                held = self._held(self.spec.by_layer[i], at, stage)
                self._layer_elements[key] = sum(s.elements for s in held)
            outer += self._layer_elements[key]
        return outer

    @cached_property
    def _outer(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.spec.parameters if p.layer is None)

    @cached_property
    def _layer_elements(self) -> dict[tuple[int, int, int], int]:
        return {}

    @cached_property
    def _elements(self) -> dict[tuple[int, int], int]:
        return {}

    def _held(
        self, parameters: Iterable[Parameter], at: Coordinates, stage: Stage
    ) -> Iterator[Shard]:
        for p in parameters:
            if p.layer is not None:
                held = p.layer in stage.layers
            elif p.role is Role.TOKEN_EMBEDDING:
                held = stage.embedding or (stage.head and self.spec.tied_head)
            elif p.role is Role.POSITION_EMBEDDING:
                held = stage.embedding
            else:
                held = stage.head
            if held and not (p.role in _ADDED_ONCE and p.kind == "bias" and at.tp != 0):
                yield self.shard(p, at)

    def shard(self, p: Parameter, at: Coordinates) -> Shard:
        """The part of `p` that a rank of its stage holds."""
        block = None if p.layer is None else self.spec.blocks[p.layer]
        facts = block and (
            block.attention.heads,
            block.attention.kv_heads,
            block.feed_forward.width,
        )
        key = (p.role, p.kind, p.shape, facts, at.tp, self.degrees.tp_of(at.pp))
        if key not in self._splits:
            self._splits[key] = self._split_with_shape(p, at)
        return Shard(p, *self._splits[key])

    @cached_property
    def _splits(self) -> dict[object, tuple[int | None, tuple[Piece, ...], tuple[int, ...]]]:
        """What `shard` found, by the facts that it depends on: layers repeat."""
        return {}

    def _split_with_shape(
        self, p: Parameter, at: Coordinates
    ) -> tuple[int | None, tuple[Piece, ...], tuple[int, ...]]:
        dim, pieces = self._split(p, at)
        shape = list(p.shape)
        if dim is not None:
            shape[dim] = sum(piece.size for piece in pieces)
        return dim, pieces, tuple(shape)

    def _split(self, p: Parameter, at: Coordinates) -> tuple[int | None, tuple[Piece, ...]]:
        if p.role in _BY_ROWS_OF_VOCABULARY:
            return 0, (self.vocabulary(at.pp)[at.tp],)
        if p.layer is None:
            return None, ()
        block = self.spec.blocks[p.layer]
        heads, dim = self.rank_heads(block.attention, at), block.attention.head_dim
        if p.role in _BY_QUERY_HEADS:
            return 0, heads.query_rows(dim)
        if p.role in _BY_KV_HEADS:
            return 0, heads.kv_rows(dim)
        if p.role in _BY_COLUMNS:
            return 0, (self.columns(block.feed_forward.width, at),)
        if p.kind == "weight" and p.role is Role.ATTENTION_OUTPUT:
            return 1, heads.query_rows(dim)
        if p.kind == "weight" and p.role is Role.DOWN:
            return 1, (self.columns(block.feed_forward.width, at),)
        return None, ()

    def kv_elements_per_token(self, rank: int) -> int:
        """Elements of K and V that one token takes in the rank's cache."""
        return sum(count * dim for count, dim in self._kv_vectors(rank))

    def kv_vectors_per_token(self, rank: int) -> int:
        """Of head dim elements each, keys and values."""
        return sum(count for count, _ in self._kv_vectors(rank))

    def _kv_vectors(self, rank: int) -> Iterator[tuple[int, int]]:
        """Of each layer: how many, and their elements."""
        at = self.degrees.coordinates(rank)
        for i in self.stages[at.pp].layers:
            attention = self.spec.blocks[i].attention
            yield 2 * len(self.rank_heads(attention, at).kv), attention.head_dim


def check_degrees(spec: ModelSpec, degrees: Degrees) -> None:
    """Raises `LayoutError` for a degree that the model can't take."""
    heads = min(b.attention.heads for b in spec.blocks)
    width = min(b.feed_forward.width for b in spec.blocks)
    most = min(heads, width, spec.vocabulary)
    for pp, tp in enumerate(degrees.stage_tp or (degrees.tp,)):
        if tp <= most:
            continue
        what = "query heads" if most == heads else "FFN columns or vocabulary rows"
        where = "" if degrees.stage_tp is None else f" of stage {pp}"
        raise LayoutError(
            f"tp={tp}{where} is more than the {most} {what} of {spec.name}; "
            f"legal here: tp 1 to {most}"
            + (f", for example tp={most}" if most > 1 else "")
            + "; use pp for more ranks"
        )
    if degrees.pp > spec.layers:
        raise LayoutError(
            f"pp={degrees.pp} is more than the {spec.layers} layers of {spec.name}; "
            f"legal here: pp 1 to {spec.layers}"
        )
