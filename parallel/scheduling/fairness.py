"""How prompts share a step's tokens: the first keeps moving, the short ones get through.

At least half of the budget goes to the first prompt in the queue's order, the rest to those with
least left to compute. With a budget of B tokens in each step, counted over prompts of one priority:

- A prompt with r tokens left, behind others with r₁, r₂ … left, is computed within
  ⌈r₁/⌈B/2⌉⌉ + ⌈r₂/⌈B/2⌉⌉ + … + ⌈r/⌈B/2⌉⌉ steps, whatever comes after it.
- A prompt is computed within ⌈S/⌊B/2⌋⌉ steps, however long the others are: S are its own tokens
  and what is computed of others while no more of them is left than of it.
"""

from __future__ import annotations

from collections.abc import Sequence


def share_out(pending: Sequence[int], budget: int, classes: Sequence[int] = ()) -> list[int]:
    """Tokens for each prompt of which `pending` are left, in the queue's order; all of `budget`
    unless less is pending. `classes` are priorities, lower first; without them all are alike."""
    given = [0] * len(pending)
    if not pending or budget <= 0:
        return given
    given[0] = min(pending[0], -(-budget // 2))
    left = budget - given[0]
    order = (
        sorted(range(len(pending)), key=lambda i: (classes[i], pending[i] - given[i], i))
        if classes
        else sorted(range(len(pending)), key=lambda i: (pending[i] - given[i], i))
    )
    for i in order:
        if left == 0:
            break
        more = min(pending[i] - given[i], left)
        given[i] += more
        left -= more
    return given
