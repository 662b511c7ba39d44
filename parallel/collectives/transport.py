"""How bytes move within one group: torch.distributed (NCCL, gloo, fake), whatever the axis."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from parallel.planner.activations import kept_sends

# Named so since torch 2.13, which warns of the old names.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

OnWire = Callable[[], float]
"""Seconds that a transfer took on the backend's own stream, once it has ended."""


class Transport(ABC):
    """`name` is the backend shown to the user, `reason` why it was chosen. Nothing moves in a dry
    one: its ranks aren't there."""

    name: str
    reason: str
    buffer_bytes: int | None = None
    dry = False

    @abstractmethod
    def all_reduce(self, x: torch.Tensor) -> None: ...

    @abstractmethod
    def all_gather(self, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor: ...

    def reduce_scatter(self, x: torch.Tensor, index: int, ranks: int) -> torch.Tensor:
        """Rows of the sum. A backend that has no such operation sums all of them."""
        self.all_reduce(x)
        rows = x.shape[0] // ranks
        return x.narrow(0, index * rows, rows).clone()

    def gather_rows(self, x: torch.Tensor, index: int, ranks: int) -> torch.Tensor:
        """Pieces one after the other, here as the sum of arrays that are zero elsewhere."""
        out = x.new_zeros((x.shape[0] * ranks, *x.shape[1:]))
        out.narrow(0, index * x.shape[0], x.shape[0]).copy_(x)
        self.all_reduce(out)
        return out

    @abstractmethod
    def send(self, x: torch.Tensor, to: int) -> OnWire | None:
        """None where the backend doesn't time what goes on beside the caller's work."""

    @abstractmethod
    def recv(self, x: torch.Tensor, source: int) -> None: ...

    @abstractmethod
    def flush(self) -> None: ...


class ProcessGroupTransport(Transport):
    """`ranks` are global; `to` and `source` are places in the group."""

    def __init__(
        self, group: dist.ProcessGroup, ranks: Sequence[int], name: str, reason: str, batches: int
    ):
        self.group, self.ranks = group, tuple(ranks)
        self.name, self.reason = name, reason
        self.dry = name == "fake"
        # What gloo holds it takes before any tensor: it is measured with the runtime's bytes.
        self.buffer_bytes = 0 if name == "gloo" else None
        self._batched = name == "nccl"
        if self._batched:
            group._enable_collectives_timing()  # type: ignore[attr-defined]
        self._most = kept_sends(batches)
        self._sent: deque[tuple[dist.Work, torch.Tensor]] = deque()

    def all_reduce(self, x: torch.Tensor) -> None:
        if x.is_contiguous():
            dist.all_reduce(x, group=self.group)
        else:
            whole = x.contiguous()
            dist.all_reduce(whole, group=self.group)
            x.copy_(whole)

    def all_gather(self, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Pieces padded to the widest: gloo refuses uneven ones."""
        widest = max(sizes)
        mine = F.pad(x, (0, widest - x.shape[-1])).contiguous()
        pieces = [torch.empty_like(mine) for _ in sizes]
        dist.all_gather(pieces, mine, group=self.group)
        return torch.cat([p[..., :n] for p, n in zip(pieces, sizes, strict=True)], dim=-1)

    def reduce_scatter(self, x: torch.Tensor, index: int, ranks: int) -> torch.Tensor:
        if not self._batched:
            return super().reduce_scatter(x, index, ranks)
        out = x.new_empty((x.shape[0] // ranks, *x.shape[1:]))
        _reduce_scatter(out, x.contiguous(), group=self.group)
        return out

    def gather_rows(self, x: torch.Tensor, index: int, ranks: int) -> torch.Tensor:
        out = x.new_empty((x.shape[0] * ranks, *x.shape[1:]))
        _all_gather(out, x.contiguous(), group=self.group)
        return out

    def send(self, x: torch.Tensor, to: int) -> OnWire | None:
        """Returns at once; the tensor is kept until it has left."""
        x = x.contiguous()
        works = self._start(dist.isend, x, to)
        for work in works:
            self._sent.append((work, x))
        while len(self._sent) > self._most:
            self._sent.popleft()[0].wait()
        return partial(wire_seconds, works) if self._batched else None

    def recv(self, x: torch.Tensor, source: int) -> None:
        for work in self._start(dist.irecv, x, source):
            work.wait()

    def _start(self, op: Callable[..., Any], x: torch.Tensor, place: int) -> list[dist.Work]:
        peer = self.ranks[place]
        if self._batched:
            # Alone, each pair of ranks would get an NCCL communicator of its own.
            return list(dist.batch_isend_irecv([dist.P2POp(op, x, peer, self.group)]))
        work = op(x, peer, group=self.group)
        return [] if work is None else [work]

    def flush(self) -> None:
        while self._sent:
            self._sent.popleft()[0].wait()


def wire_seconds(works: Sequence[dist.Work]) -> float:
    """NCCL's own events, on its stream; 0 for what hasn't ended."""
    ended = (work for work in works if work.is_completed())
    return sum(work._get_duration() / 1e3 for work in ended)  # type: ignore[attr-defined]
