"""Places in the mesh: ranks and coordinates, groups, who feeds whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.errors import LayoutError
from parallel.layout.degrees import Coordinates, Degrees


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_ranks_and_coordinates(tp: int, pp: int, dp: int) -> None:
    degrees = Degrees(tp, pp, dp)
    for rank in range(degrees.world_size):
        at = degrees.coordinates(rank)
        assert degrees.rank(at.tp, at.pp, at.dp) == rank
        for axis, size in (("tp", tp), ("pp", pp), ("dp", dp)):
            group = degrees.group(axis, rank)
            assert len(group) == size
            assert group[getattr(at, axis)] == rank
            assert all(degrees.group(axis, other) == group for other in group)
    assert degrees.group("tp", 0) == tuple(range(tp))


@pytest.mark.parametrize("axis", ["tp", "pp", "dp"])
def test_degrees_below_one_are_refused(axis: str) -> None:
    with pytest.raises(LayoutError, match=f"{axis}=0 is not a degree"):
        Degrees(**{axis: 0})


unlike = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@given(unlike, st.integers(1, 3))
def test_ranks_of_unlike_stages(stage_tp: list[int], dp: int) -> None:
    """Ranks count through stages and replicas, and every axis cuts them into groups."""
    degrees = Degrees.of_stages(stage_tp, dp)
    assert (degrees.tp, degrees.pp) == (max(stage_tp), len(stage_tp))
    assert degrees.world_size == dp * sum(stage_tp)
    places = [
        Coordinates(tp, pp, replica)
        for replica in range(dp)
        for pp, size in enumerate(stage_tp)
        for tp in range(size)
    ]
    assert [degrees.coordinates(r) for r in range(degrees.world_size)] == places
    assert [degrees.rank(at.tp, at.pp, at.dp) for at in places] == list(range(len(places)))
    assert [r for i in range(dp) for r in degrees.replica(i)] == list(range(len(places)))
    for axis in ("tp", "pp", "dp"):
        groups = {degrees.group(axis, r) for r in range(degrees.world_size)}
        assert sorted(r for group in groups for r in group) == list(range(len(places)))
        assert all(degrees.group(axis, r) == group for group in groups for r in group)
        assert all(list(group) == sorted(group) for group in groups)
    assert degrees.group("tp", 0) == tuple(range(stage_tp[0]))


@given(unlike, st.integers(1, 2))
def test_each_rank_is_fed_once_by_the_stage_before(stage_tp: list[int], dp: int) -> None:
    degrees = Degrees.of_stages(stage_tp, dp)
    for rank in range(degrees.world_size):
        at, sender = degrees.coordinates(rank), degrees.sender(rank)
        assert (sender is None) == (at.pp == 0)
        fed = degrees.receivers(rank)
        assert all(degrees.sender(r) == rank for r in fed)
        assert set(fed) <= set(degrees.group("pp", rank))
        if sender is not None:
            above = degrees.coordinates(sender)
            assert (above.pp, above.dp) == (at.pp - 1, at.dp)
            assert rank in degrees.receivers(sender)
            here, before = degrees.tp_of(at.pp), degrees.tp_of(above.pp)
            assert len(degrees.receivers(sender)) <= -(-here // before)
            assert here != before or above.tp == at.tp


def test_neighbours_of_unlike_stages() -> None:
    degrees = Degrees.of_stages([2, 4, 1])
    assert [degrees.receivers(r) for r in range(7)] == [(2, 3), (4, 5), (6,), (), (), (), ()]
    assert degrees.group("pp", 6) == (0, 2, 3, 6)
    assert degrees.group("pp", 5) == (1, 4, 5)
    assert Degrees.of_stages([2, 1]).group("pp", 1) == (1,)


def test_equal_degrees_have_one_spelling() -> None:
    assert Degrees.of_stages([2, 2], 3) == Degrees(2, 2, 3) == Degrees(2, 2, 3, (2, 2))
    assert str(Degrees.of_stages([2, 2])) == "tp=2 pp=2 dp=1"
    assert str(Degrees.of_stages([2, 1], 3)) == "stage_tp=[2,1] dp=3"


def test_stage_degrees_that_are_refused() -> None:
    for wrong in ([], [2, 0], [-1]):
        with pytest.raises(LayoutError, match=r"stage_tp=\[.*\] must give each stage's tp"):
            Degrees.of_stages(wrong)
    with pytest.raises(LayoutError, match=r"means tp=2 \(the largest\) and pp=2, not tp=4 pp=2"):
        Degrees(4, 2, 1, (2, 1))
