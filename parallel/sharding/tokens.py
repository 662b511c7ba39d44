"""Sequence parallelism (Korthikanti et al., arXiv 2205.05198): in steps of many tokens each rank of
the axis keeps its own rows of the hidden states between a row-parallel layer and the next
column-parallel one, so that norms and sums of the residual are computed once, not on every rank.

T tokens of the step, h hidden, t ranks. An all-reduce becomes a reduce-scatter and an all-gather.
"""

from __future__ import annotations

import torch

from parallel.collectives.communicator import Communicator
from parallel.planner.communication import splits_tokens


class TokenSplit:
    """Says for the step under way how its hidden states lie. `least_tokens` is the plan's: the same
    on every rank (None: never split)."""

    def __init__(self, axis: Communicator, least_tokens: int | None):
        self.axis, self.least_tokens = axis, least_tokens
        self.on = False

    def begin(self, tokens: int) -> None:
        """Before each step of so many tokens."""
        self.on = splits_tokens(tokens, self.axis.size, self.least_tokens)

    def own(self, x: torch.Tensor) -> torch.Tensor:
        """[T, …] → this rank's rows, a view."""
        if not self.on:
            return x
        rows = x.shape[0] // self.axis.size
        return x.narrow(0, self.axis.index * rows, rows)

    def whole(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        """[own rows, h] → [T, h] on every rank."""
        return self.axis.gather_rows(x, layer) if self.on else x

    def sum(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        """[T, h] of parts → own rows of their sum, all rows where tokens aren't split; `x` may be
        written over."""
        if self.on:
            return self.axis.reduce_scatter(x, layer)
        return self.axis.all_reduce(x, layer)
