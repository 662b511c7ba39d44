"""How prompts share a step: the bounds of parallel/scheduling/fairness.py."""

from __future__ import annotations

from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from parallel.scheduling.fairness import share_out

PENDING = st.lists(st.integers(1, 100), min_size=1, max_size=8)


@given(PENDING, st.integers(0, 120))
def test_all_of_the_budget_and_no_more_than_is_pending(pending: list[int], budget: int) -> None:
    given_ = share_out(pending, budget)
    assert sum(given_) == min(budget, sum(pending))
    assert all(0 <= g <= p for g, p in zip(given_, pending, strict=True))


def test_the_first_and_then_the_short() -> None:
    assert share_out([1000, 30, 10], 64) == [32, 22, 10]
    assert share_out([1000], 64) == [64]
    assert share_out([50, 60], 64) == [50, 14], "equal ones go one after the other"
    assert share_out([10, 1000, 10], 64, (0, 0, 1)) == [10, 54, 0], "priorities are strict"


@given(PENDING, st.integers(1, 60), st.lists(st.integers(1, 100), max_size=20))
def test_nobody_waits_for_ever(pending: list[int], budget: int, later: list[int]) -> None:
    """Steps until each is computed, while others come behind."""
    first, rest = ceil(budget / 2), budget // 2
    left, done, ahead = list(pending), [0] * len(pending), [0] * len(pending)
    coming, steps = list(later), 0
    while any(left[: len(pending)]):
        steps += 1
        alive = [i for i, n in enumerate(left) if n]
        before = list(left)
        for i, g in zip(alive, share_out([left[i] for i in alive], budget), strict=True):
            left[i] -= g
        for p in range(len(pending)):
            if before[p]:
                # Tokens of its own, and of those with no more left than it had.
                ahead[p] += sum(before[i] - left[i] for i in alive if left[i] <= before[p])
                if left[p] == 0:
                    done[p] = steps
        if coming:
            left.append(coming.pop())
    bound = 0
    for p, length in enumerate(pending):
        bound += ceil(length / first)
        assert done[p] <= bound, "whatever comes after it"
        if rest:
            assert done[p] <= ceil(ahead[p] / rest), "however long the others are"
