"""The layers that give a model its parallel form. T tokens, h hidden; sizes are this rank's.

Column-parallel layers split their outputs, row-parallel ones their inputs and sum over the axis
(Megatron-LM, arXiv 1909.08053); embedding and head split the vocabulary.
"""

from __future__ import annotations

import torch

from parallel.collectives.communicator import Communicator
from parallel.kernels.linear import Linear, Table
from parallel.layout.split import Piece


class ColumnLinear:
    """[T, in] → [T, out of this rank]."""

    def __init__(self, linear: Linear):
        self.linear = linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class RowLinear:
    """[T, in of this rank] → [T, out], summed over the axis. The bias is held by one rank."""

    def __init__(self, linear: Linear, axis: Communicator, layer: str):
        self.linear, self.axis, self.layer = linear, axis, layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.axis.all_reduce(self.linear(x), self.layer)


class VocabularyEmbedding:
    """Token ids [T] → [T, h]; each rank looks up its own rows, the sum has them all."""

    def __init__(self, table: Table, rows: Piece, axis: Communicator):
        self.table, self.rows, self.axis = table, rows, axis

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        if self.axis.size == 1:
            return self.table.rows(ids)
        local = ids - self.rows.begin
        mine = (local >= 0) & (local < self.rows.size)
        found = self.table.rows(local.clamp(0, self.rows.size - 1))
        return self.axis.all_reduce(found * mine.unsqueeze(1), "embedding")


class VocabularyHead:
    """[R, h] → logits [R, V] in float32 on every rank of the axis."""

    def __init__(self, linear: Linear, pieces: tuple[Piece, ...], axis: Communicator):
        self.linear, self.axis = linear, axis
        self.sizes = [p.size for p in pieces]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        local = self.linear(x).float()
        if self.axis.size == 1:
            return local
        return self.axis.all_gather(local, self.sizes, "logits")
