"""A rank's weights: allocated once, fused where a step reads them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from parallel.architecture.spec import Role
from parallel.devices.base import Device, PackedLinear
from parallel.layout.layout import Layout, Shard

Key = tuple[Role, int | None, str]


@dataclass(frozen=True)
class Target:
    """Where a shard's values go: a view of the shard's shape."""

    shard: Shard
    view: torch.Tensor


class Weights:
    """Every tensor that holds parameters of this rank; nothing else does."""

    def __init__(self, layout: Layout, rank: int, dtype: torch.dtype, device: Device):
        self.layout, self.rank, self.dtype, self.device = layout, rank, dtype, device
        self.coordinates = layout.degrees.coordinates(rank)
        self.stage = layout.stage(rank)
        self.targets: list[Target] = []
        self.tensors: list[torch.Tensor] = []
        self._packed: list[PackedLinear] = []
        self._shards: dict[Key, Shard] = {
            (s.parameter.role, s.parameter.layer, s.parameter.kind): s for s in layout.shards(rank)
        }

    def take(
        self, roles: Role | Sequence[Role], layer: int | None = None, kind: str = "weight"
    ) -> torch.Tensor | None:
        """Allocates the shards of `roles` under one another as one tensor; None if not held."""
        wanted = [roles] if isinstance(roles, Role) else roles
        shards = [s for r in wanted if (s := self._shards.get((r, layer, kind))) is not None]
        if not shards:
            return None
        rows = sum(s.shape[0] for s in shards)
        tensor = self.device.weight((rows, *shards[0].shape[1:]), self.dtype)
        self.tensors.append(tensor)
        row = 0
        for s in shards:
            self.targets.append(Target(s, tensor.narrow(0, row, s.shape[0])))
            row += s.shape[0]
        return tensor

    def replace(self, weight: torch.Tensor, packed: PackedLinear) -> None:
        """`packed` holds the values of `weight` from now on; the tensor is given back."""
        self.tensors = [t for t in self.tensors if t is not weight]
        self._packed.append(packed)

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in self.tensors) + sum(p.bytes for p in self._packed)
