"""Splits, head maps, stage cuts and layouts: everything held, nothing twice without need."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from parallel.architecture.spec import ModelSpec, Parameter, Role
from parallel.errors import LayoutError
from parallel.layout import stages as stage_cuts
from parallel.layout.degrees import Coordinates, Degrees
from parallel.layout.heads import CHOICES, RankHeads, head_map
from parallel.layout.layout import Layout
from parallel.layout.split import Piece, column_unit, even_split, scale
from tests.specs import BIG, small_spec, specs

HEADS = [
    (heads, kv, tp)
    for heads in range(1, 17)
    for kv in range(1, heads + 1)
    if heads % kv == 0
    for tp in range(1, heads + 1)
]

# ---------------------------------------------------------------------------- splits


def indices(pieces: tuple[Piece, ...]) -> list[int]:
    return [i for p in pieces if not p.padding for i in range(p.begin, p.end)]


@given(st.integers(0, 500), st.integers(1, 20), st.sampled_from((1, 2, 8, 64)))
def test_even_split_covers(total: int, parts: int, unit: int) -> None:
    pieces = even_split(total, parts, unit)
    assert len(pieces) == parts
    assert indices(pieces) == list(range(total))
    assert all(p.begin % unit == 0 or p.begin == total for p in pieces)
    sizes = [p.size for p in pieces]
    assert max(sizes) - min(sizes) <= (unit if total % unit == 0 else 2 * unit - 1)


@given(st.integers(1, 60000), st.integers(1, 64))
def test_columns_are_dealt_evenly(width: int, parts: int) -> None:
    assume(parts <= width)
    unit = column_unit(width, parts)
    sizes = [p.size for p in even_split(width, parts, unit)]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= max(1, width / parts / 4)
    if width % (64 * parts) == 0:
        assert set(sizes) == {width // parts}


@given(st.integers(1, 7), st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=1))
def test_scaled_pieces_keep_order(factor: int, heads: list[int | None]) -> None:
    pieces = tuple(Piece(0, 1, padding=True) if h is None else Piece(h, h + 1) for h in heads)
    scaled = scale(pieces, factor)
    assert sum(p.size for p in scaled) == factor * len(heads)
    assert indices(scaled) == [
        h * factor + i for h in heads if h is not None for i in range(factor)
    ]
    for a, b in pairwise(scaled):
        assert a.padding or b.padding or a.end != b.begin


# ---------------------------------------------------------------------------- heads


def check_rank(rank: RankHeads, group: int) -> None:
    """The rank has what its queries need, where it says."""
    real = [q for q in rank.queries if q >= 0]
    assert rank.kv == tuple(sorted({q // group for q in real}))
    assert len(rank.kv_of_query) == len(rank.queries)
    for q, k in zip(rank.queries, rank.kv_of_query, strict=True):
        assert q < 0 or rank.kv[k] == q // group
    counts = [rank.kv_of_query.count(k) for k in range(len(rank.kv))]
    assert rank.group == max(counts)
    slots = rank.slots
    assert len(set(slots)) == len(slots)
    for slot, k in zip(slots, rank.kv_of_query, strict=True):
        assert k * rank.group <= slot < (k + 1) * rank.group
    in_order = list(rank.kv_of_query) == sorted(rank.kv_of_query)
    assert rank.uniform == (len(set(counts)) == 1 and in_order)
    if rank.uniform:
        assert slots == tuple(range(len(rank.queries)))


@pytest.mark.parametrize("choice", CHOICES)
def test_head_maps(choice: str) -> None:
    for heads, kv, tp in HEADS:
        if choice == "groups" and tp > kv:
            continue
        ranks = head_map(heads, kv, tp, choice)
        assert len(ranks) == tp
        queries = [q for r in ranks for q in r.queries if q >= 0]
        assert queries == list(range(heads))
        for rank in ranks:
            check_rank(rank, heads // kv)
            assert choice != "padded" or rank.uniform
            assert choice == "padded" or -1 not in rank.queries
        loads = [len(r.queries) for r in ranks]
        if choice == "groups":
            assert sum(len(r.kv) for r in ranks) == kv
        if choice == "replicate" and tp < kv:
            assert max(loads) - min(loads) <= 1


def test_auto_is_never_dearer() -> None:
    def fullest(ranks: tuple[RankHeads, ...]) -> int:
        return max(len(r.queries) + len(r.kv) for r in ranks)

    for heads, kv, tp in HEADS:
        best = fullest(head_map(heads, kv, tp))
        assert best <= fullest(head_map(heads, kv, tp, "replicate"))
        if tp <= kv:
            assert best <= fullest(head_map(heads, kv, tp, "groups"))
        elif tp % kv == 0:
            assert all(len(r.kv) == 1 for r in head_map(heads, kv, tp))


def test_default_models_heads_on_two_ranks() -> None:
    groups = head_map(9, 3, 2, "groups")
    assert [r.queries for r in groups] == [tuple(range(6)), (6, 7, 8)]
    assert [r.kv for r in groups] == [(0, 1), (2,)]
    replicate = head_map(9, 3, 2, "replicate")
    assert [len(r.queries) for r in replicate] == [5, 4]
    assert [r.kv for r in replicate] == [(0, 1), (1, 2)]
    padded = head_map(9, 3, 2, "padded")
    assert [r.queries for r in padded] == [(0, 1, 2, 3, 4, -1), (5, -1, -1, 6, 7, 8)]
    assert padded[1].query_rows(2)[1] == Piece(0, 2, padding=True)


def test_shares_end_at_the_borders_of_groups_where_that_costs_nothing() -> None:
    """8 heads on 3 ranks: 3, 3, 2 would let the second rank hold both KV heads."""
    ranks = head_map(8, 2, 3, "replicate")
    assert [r.queries for r in ranks] == [(0, 1), (2, 3), (4, 5, 6, 7)]
    assert [r.kv for r in ranks] == [(0,), (0,), (1,)]


def test_head_maps_that_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"tp=10 is more than the 9 query heads.*1 to 9"):
        head_map(9, 3, 10)
    with pytest.raises(LayoutError, match=r"tp=4 is more than the 3 KV heads.*tp 1 to 3"):
        head_map(9, 3, 4, "groups")
    with pytest.raises(LayoutError, match="'paded' is unknown; did you mean 'padded'"):
        head_map(9, 3, 2, "paded")


# ---------------------------------------------------------------------------- stages


def bottleneck(
    costs: list[float], bounds: tuple[int, ...], first: float, last: float, stage_tp: list[int]
) -> float:
    loads = [sum(costs[a:b]) for a, b in pairwise(bounds)]
    loads[0] += first
    loads[-1] += last
    return max(load / tp for load, tp in zip(loads, stage_tp, strict=True))


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.integers(0, 20),
    st.integers(0, 20),
    st.lists(st.integers(1, 4), min_size=1, max_size=8),
)
def test_balanced_stages_are_optimal(
    costs: list[int], first: int, last: int, stage_tp: list[int]
) -> None:
    pp = len(stage_tp)
    assume(pp <= len(costs))
    loads = [float(c) for c in costs]
    cut = stage_cuts.balanced(loads, first, last, pp, stage_tp)
    assert [i for s in cut for i in s.layers] == list(range(len(costs)))
    assert all(len(s.layers) >= 1 for s in cut)
    assert [s.embedding for s in cut] == [i == 0 for i in range(pp)]
    assert [s.head for s in cut] == [i == pp - 1 for i in range(pp)]
    every = ((0, *inner, len(costs)) for inner in combinations(range(1, len(costs)), pp - 1))
    chosen = (0, *(s.end for s in cut))
    assert bottleneck(loads, chosen, first, last, stage_tp) == min(
        bottleneck(loads, bounds, first, last, stage_tp) for bounds in every
    )


def test_equal_layers_are_cut_evenly() -> None:
    assert [len(s.layers) for s in stage_cuts.balanced([1.0] * 9, 0, 0, 3)] == [3, 3, 3]
    assert [len(s.layers) for s in stage_cuts.balanced([1.0] * 9, 0, 3, 3)] == [4, 4, 1]
    with pytest.raises(LayoutError, match="pp=4 is more than the model's 3 layers"):
        stage_cuts.balanced([1.0] * 3, 0, 0, 4)


def test_given_stages() -> None:
    assert [s.layers for s in stage_cuts.given([1, 3], 4, 2)] == [range(0, 1), range(1, 4)]
    for counts in ([2, 2], [1, 3, 1], [0, 5], [], [-1, 6]):
        with pytest.raises(LayoutError, match=r"2 positive numbers \(pp=2\) that sum to.*5"):
            stage_cuts.given(counts, 5, 2)


# ---------------------------------------------------------------------------- layouts


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    spec = draw(specs())
    attention = spec.blocks[0].attention
    tp = draw(st.integers(1, min(attention.heads, 6)))
    choices = CHOICES if tp <= attention.kv_heads else ("auto", "replicate", "padded")
    pp, dp = draw(st.integers(1, spec.layers)), draw(st.integers(1, 2))
    stage_tp = draw(st.lists(st.integers(1, tp), min_size=pp, max_size=pp))
    degrees = draw(st.sampled_from([Degrees(tp, pp, dp), Degrees.of_stages(stage_tp, dp)]))
    return Layout.make(spec, degrees, heads=draw(st.sampled_from(choices)))


def holders(layout: Layout, p: Parameter, pp: int) -> list[list[int]]:
    """How often each index of the split dimension is held, by tp rank; [] where nothing is."""
    found: list[list[int]] = []
    for rank in layout.degrees.stage_ranks(pp, 0):
        shards = [s for s in layout.shards(rank) if s.parameter is p]
        assert len(shards) <= 1
        if not shards:
            found.append([])
            continue
        shard = shards[0]
        dim = shard.dim or 0
        if shard.dim is None:
            assert shard.shape == p.shape
            held = list(range(p.shape[0]))
        else:
            local = sum(piece.size for piece in shard.pieces)
            assert shard.shape == (*p.shape[:dim], local, *p.shape[dim + 1 :])
            held = indices(shard.pieces)
            assert len(set(held)) == len(held)
        counts = [0] * p.shape[dim]
        for i in held:
            counts[i] += 1
        found.append(counts)
    return found


WHOLE = (
    Role.POSITION_EMBEDDING,
    Role.ATTENTION_NORM,
    Role.FFN_NORM,
    Role.FINAL_NORM,
    Role.QUERY_NORM,
    Role.KEY_NORM,
)


def stages_of(spec: ModelSpec, p: Parameter, layout: Layout) -> list[int]:
    """The pipeline stages that need the parameter."""
    last = layout.degrees.pp - 1
    if p.layer is not None:
        return [i for i, s in enumerate(layout.stages) if p.layer in s.layers]
    if p.role is Role.TOKEN_EMBEDDING:
        return sorted({0, last}) if spec.tied_head else [0]
    return [0] if p.role is Role.POSITION_EMBEDDING else [last]


@given(layouts())
def test_shards_cover_every_parameter(layout: Layout) -> None:
    spec, degrees = layout.spec, layout.degrees
    for p in spec.parameters:
        for pp in range(degrees.pp):
            tp = degrees.tp_of(pp)
            held = holders(layout, p, pp)
            if pp not in stages_of(spec, p, layout):
                assert held == [[]] * tp
                continue
            if p.kind == "bias" and p.role in (Role.ATTENTION_OUTPUT, Role.DOWN):
                assert held == [[1] * p.shape[0]] + [[]] * (tp - 1)
                continue
            sums = [sum(counts) for counts in zip(*held, strict=True)]
            if p.role in WHOLE:
                assert sums == [tp] * len(sums)
            elif p.role in (Role.KEY, Role.VALUE):
                assert p.layer is not None
                attention = spec.blocks[p.layer].attention
                ranks = [layout.rank_heads(attention, Coordinates(t, pp, 0)) for t in range(tp)]
                assert sums == [
                    sum(row // attention.head_dim in r.kv for r in ranks)
                    for row in range(p.shape[0])
                ]
                assert min(sums) >= 1
            else:
                assert sums == [1] * len(sums)


@given(layouts())
def test_counts_of_elements(layout: Layout) -> None:
    degrees = layout.degrees
    for rank in range(degrees.world_size):
        shards = layout.shards(rank)
        assert layout.weight_elements(rank) == sum(s.elements for s in shards)
        first = degrees.rank(degrees.coordinates(rank).tp, degrees.coordinates(rank).pp, 0)
        assert layout.shards(first) == shards
        keys = [s for s in shards if (s.parameter.role, s.parameter.kind) == (Role.KEY, "weight")]
        assert layout.kv_elements_per_token(rank) == 2 * sum(s.shape[0] for s in keys)
    if degrees.world_size == 1:
        assert layout.weight_elements(0) == layout.spec.elements


def test_rows_of_queries_follow_the_head_map() -> None:
    layout = Layout.make(small_spec(num_attention_heads=9, num_key_value_heads=3), Degrees(2))
    spec = layout.spec
    for tp in range(2):
        at = Coordinates(tp, 0, 0)
        heads = layout.rank_heads(spec.blocks[0].attention, at)
        rows = [q * 8 + i for q in heads.queries for i in range(8)]
        query, out = spec.of(Role.QUERY, 0), spec.of(Role.ATTENTION_OUTPUT, 0)
        assert query is not None and out is not None
        assert indices(layout.shard(query, at).pieces) == rows
        assert indices(layout.shard(out, at).pieces) == rows
        assert (layout.shard(query, at).dim, layout.shard(out, at).dim) == (0, 1)


def test_a_tied_table_is_held_by_both_end_stages() -> None:
    spec = small_spec("gpt2")
    table = spec.of(Role.TOKEN_EMBEDDING)
    assert table is not None
    apart = Layout.make(spec, Degrees(tp=1, pp=3))
    held = [any(s.parameter is table for s in apart.shards(r)) for r in range(3)]
    assert held == [True, False, True]
    assert sum(map(apart.weight_elements, range(3))) == spec.elements + table.elements
    together = Layout.make(spec, Degrees())
    assert sum(s.parameter is table for s in together.shards(0)) == 1


def test_the_heads_matrix_weighs_as_the_layers_it_equals() -> None:
    """Five layers of some 15 million elements against three and a head of 33 million."""
    layout = Layout.make(BIG, Degrees(pp=2))
    assert [len(s.layers) for s in layout.stages] == [5, 3]


def test_stages_and_heads_as_the_user_says() -> None:
    spec = small_spec()
    layout = Layout.make(spec, Degrees(pp=2), stages=[2, 1])
    assert [s.layers for s in layout.stages] == [range(0, 2), range(2, 3)]
    assert layout.stage(1).head and not layout.stage(0).head
    with pytest.raises(LayoutError, match="stages="):
        Layout.make(spec, Degrees(pp=2), stages=[2, 2])
    with pytest.raises(LayoutError, match="heads=groups"):
        Layout.make(spec, Degrees(tp=3), heads="groups")


@pytest.mark.parametrize(
    ("degrees", "words"),
    [
        (
            Degrees(tp=7),
            "tp=7 is more than the 6 query heads of small-llama; legal here: tp 1 to 6",
        ),
        (Degrees(pp=4), "pp=4 is more than the 3 layers of small-llama; legal here: pp 1 to 3"),
    ],
)
def test_degrees_that_the_model_cant_take(degrees: Degrees, words: str) -> None:
    with pytest.raises(LayoutError) as caught:
        Layout.make(small_spec(), degrees)
    assert words in str(caught.value)


def test_each_stage_is_held_by_its_own_ranks() -> None:
    """A stage of one rank holds its layers whole; the same layers over two ranks weigh as much,
    but for the norms that both hold. The stage with two ranks takes the more layers."""
    layout = Layout.make(BIG, Degrees.of_stages([2, 1]))
    assert [len(s.layers) for s in layout.stages] == [7, 1]
    whole = Layout.make(BIG, Degrees(pp=2), stages=[7, 1])
    assert layout.shards(2) == whole.shards(1)
    assert layout.kv_elements_per_token(2) == whole.kv_elements_per_token(1)
    norms = 7 * 2 * BIG.hidden
    halves = layout.weight_elements(0) + layout.weight_elements(1)
    assert halves == whole.weight_elements(0) + norms
    assert sum(map(layout.kv_elements_per_token, (0, 1))) == whole.kv_elements_per_token(0)
    with pytest.raises(LayoutError, match=r"tp=7 of stage 1 is more than the 6 query heads"):
        Layout.make(small_spec(), Degrees.of_stages([2, 7]))


def test_narrow_models_limit_tp_too() -> None:
    with pytest.raises(LayoutError, match="tp=6 is more than the 4 FFN columns or vocabulary"):
        Layout.make(small_spec(intermediate_size=4), Degrees(tp=6))
