"""What entering one collective in the ledger takes: a communicator that moves nothing, timed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from parallel.collectives.communicator import Communicator
from parallel.collectives.transport import Transport
from parallel.devices.base import Device
from parallel.instrument.cost import seconds_of
from parallel.instrument.ledger import Ledger
from parallel.instrument.spans import Spans

_CALLS_OF_A_STEP = 60


class IdleTransport(Transport):
    name, reason = "idle", "nothing moves"

    def all_reduce(self, x: torch.Tensor) -> None:
        return

    def all_gather(self, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        return x

    def send(self, x: torch.Tensor, to: int) -> None:
        return

    def recv(self, x: torch.Tensor, source: int) -> None:
        return

    def flush(self) -> None:
        return


def record_seconds(device: Device, ring: int) -> float:
    """Of one collective, all but the transfer: stamps, counters, a sample, a place in a ring of
    `ring` records, what the watchdog is told, and the reading of a device's times."""
    ledger = Ledger("decode", Spans(ring))
    communicator = Communicator("tp", (0, 1), 0, IdleTransport(), ledger, device)
    x = device.zeros((1, 64), torch.float32)

    def step() -> None:
        ledger.begin_step("decode")
        for _ in range(_CALLS_OF_A_STEP):
            communicator.run_all_reduce(x, "ffn")
        communicator.resolve()

    try:
        return seconds_of(step) / _CALLS_OF_A_STEP
    finally:
        communicator.close()
