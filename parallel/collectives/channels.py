"""Sends between ranks of one host through the native kernels (`devices/native/channels.cpp`).

A send copies into a ring that its receiver reads when it is ready, and the sender goes on: no
thread of either has to wake for it. Only a ring that is full makes it wait.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from parallel.collectives.exchange import Exchange
from parallel.collectives.segments import map_segment
from parallel.collectives.transport import OnWire, Transport
from parallel.planner.memory import CHANNEL_BYTES


class ChannelTransport(Transport):
    """Each rank is fed by one other rank of the group. What isn't a send goes to `general`."""

    name = "shared_memory"
    buffer_bytes = CHANNEL_BYTES

    def __init__(
        self, general: Transport, reason: str, segment: torch.Tensor, index: int, ranks: int
    ):
        self.general, self.reason = general, reason
        self._segment, self._index, self._ranks = segment, index, ranks
        self._send = torch.ops.tessera_native.send.default
        self._receive = torch.ops.tessera_native.receive_.default

    def all_reduce(self, x: torch.Tensor) -> None:
        self.general.all_reduce(x)

    def all_gather(self, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        return self.general.all_gather(x, sizes)

    def send(self, x: torch.Tensor, to: int) -> OnWire | None:
        self._send(x.contiguous(), self._segment, self._index, to, self._ranks)
        return None

    def recv(self, x: torch.Tensor, source: int) -> None:
        self._receive(x, self._segment, self._index, self._ranks)

    def flush(self) -> None:
        """What was sent has left already: it lies in a ring."""


def start_channels(
    general: Transport, reason: str, exchange: Exchange, ranks: Sequence[int], key: str = "channels"
) -> ChannelTransport:
    """Maps the group's segment on all `ranks` together, each with the native kernels loaded; `key`
    is for this once.

    Raises `RunError` on each of them when one of them can't."""
    size = CHANNEL_BYTES * len(ranks)
    segment = map_segment(f"{key}/{ranks[0]}", size, exchange, ranks)
    return ChannelTransport(general, reason, segment, ranks.index(exchange.rank), len(ranks))
