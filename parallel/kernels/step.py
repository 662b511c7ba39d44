"""The input of one forward pass: flattened tokens, never a padded [B, S].

Shapes: T tokens of S sequences; sequences with one token each (decode) come first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

_Value = TypeVar("_Value")


@dataclass
class StepInput:
    """`query_starts` [S+1] and `context_tokens` [S] (the step's own tokens included) are on the
    host beside the tensors, so that no kernel waits for the device to learn a shape.

    A `fixed` step is that of a graph: replays find other numbers in the same tensors, and
    `context_tokens` are the least and the most that they may find.
    token_ids, positions, slots [T]: slots are rows of the cache seen as [blocks · block_tokens].
    block_tables [S, most blocks]; context_lengths [S]; logit_rows [R]: rows of T to be sampled.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    block_tables: torch.Tensor
    context_lengths: torch.Tensor
    logit_rows: torch.Tensor
    query_starts: tuple[int, ...]
    context_tokens: tuple[int, ...]
    decodes: int
    fixed: bool = False
    _shared: dict[object, object] = field(default_factory=dict, repr=False)

    @property
    def tokens(self) -> int:
        return self.query_starts[-1]

    @property
    def sequences(self) -> int:
        return len(self.context_tokens)

    def once(self, key: object, make: Callable[[], _Value]) -> _Value:
        """What all layers share in a step (rotary tables, masks), computed by the first to ask."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]  # type: ignore[return-value]
