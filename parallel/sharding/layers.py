"""The layers that give a model its parallel form. T tokens, h hidden; sizes are this rank's.

Column-parallel layers split their outputs, row-parallel ones their inputs and sum over the axis
(Megatron-LM, arXiv 1909.08053); embedding and head split the vocabulary.
"""

from __future__ import annotations

import torch

from parallel.collectives.communicator import Communicator
from parallel.kernels.linear import Linear, Table
from parallel.layout.split import Piece
from parallel.sharding.tokens import TokenSplit


class ColumnLinear:
    """[T, in] → [T, out of this rank]. Of split tokens it takes a rank's own."""

    def __init__(self, linear: Linear, tokens: TokenSplit, layer: str):
        self.linear, self.tokens, self.layer = linear, tokens, layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.tokens.whole(x, self.layer))


class RowLinear:
    """[T, in of this rank] → [T, out], summed over the axis; of split tokens only a rank's own. The
    bias is held by one rank."""

    def __init__(self, linear: Linear, tokens: TokenSplit, layer: str):
        self.linear, self.tokens, self.layer = linear, tokens, layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.tokens.sum(self.linear(x), self.layer)


class VocabularyEmbedding:
    """Token ids [T] → [T, h], or own rows of split tokens; each rank looks up its part of the
    vocabulary, the sum has all of it."""

    def __init__(self, table: Table, rows: Piece, tokens: TokenSplit):
        self.table, self.rows, self.tokens = table, rows, tokens

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        if self.tokens.axis.size == 1:
            return self.table.rows(ids)
        local = ids - self.rows.begin
        mine = (local >= 0) & (local < self.rows.size)
        found = self.table.rows(local.clamp(0, self.rows.size - 1))
        return self.tokens.sum(found * mine.unsqueeze(1), "embedding")


class VocabularyHead:
    """[R, h] → logits [R, V] in float32 on every rank of the axis."""

    def __init__(self, linear: Linear, pieces: tuple[Piece, ...], axis: Communicator):
        self.linear, self.axis = linear, axis
        self.sizes = [p.size for p in pieces]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        local = self.linear.wide(x, self.axis.device)
        if self.axis.size == 1:
            return local
        return self.axis.all_gather(local, self.sizes, "logits")
