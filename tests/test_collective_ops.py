"""The custom operators: what fake tensors, compilers and the ledger see of a collective."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from parallel.collectives.communicator import Communicator
from parallel.collectives.transport import OnWire, Transport, wire_seconds
from parallel.devices.base import Timer
from parallel.devices.cpu import CpuDevice, HostTimer
from parallel.instrument.ledger import Ledger


class Alone(Transport):
    """Moves nothing: sums are doubled, pieces repeated."""

    name, reason = "alone", "a test"

    def __init__(self, dry: bool = False):
        self.dry = dry
        self.sent: list[float] = []

    def all_reduce(self, x: torch.Tensor) -> None:
        x.mul_(2)

    def all_gather(self, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        return torch.cat([x[..., :1].expand(*x.shape[:-1], n) for n in sizes], -1)

    def send(self, x: torch.Tensor, to: int) -> OnWire | None:
        self.sent.append(float(x.sum()))
        return None

    def recv(self, x: torch.Tensor, source: int) -> None:
        x.fill_(7)

    def flush(self) -> None:
        return


def step(axis: Communicator, x: torch.Tensor) -> torch.Tensor:
    x = axis.all_reduce(x * 2, "ffn")
    axis.send(x, 1, "stage")
    x = axis.recv(x + 1, 1, "stage")
    return axis.all_gather(x, [2, 3], "logits")


COUNTS = {
    ("all_reduce", "ffn"): (1, 4 * 2 * 4),
    ("send", "stage"): (1, 4 * 2 * 4),
    ("recv", "stage"): (1, 0),
    ("all_gather", "logits"): (1, 4 * 3 * 4),
}


def counts(ledger: Ledger) -> dict[tuple[str, str], tuple[int, int]]:
    return {(r["op"], r["layer"]): (r["calls"], r["bytes"]) for r in ledger.rows(0)}


def communicator(transport: Alone) -> tuple[Communicator, Ledger]:
    ledger = Ledger("decode")
    return Communicator("tp", (0, 1), 0, transport, ledger, CpuDevice()), ledger


def test_calls_and_bytes_follow_closed_forms() -> None:
    axis, ledger = communicator(Alone())
    out = step(axis, torch.ones(4, 2))
    assert torch.equal(out, torch.full((4, 5), 7.0))
    assert counts(ledger) == COUNTS


def test_a_dry_run_counts_on_fake_tensors() -> None:
    axis, ledger = communicator(Alone(dry=True))
    with FakeTensorMode():
        out = step(axis, torch.ones(4, 2, device="cuda"))
    assert (tuple(out.shape), out.device.type) == ((4, 5), "cuda")
    assert counts(ledger) == COUNTS


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_step_sends_and_is_counted_once(backend: str) -> None:
    transport = Alone()
    axis, ledger = communicator(transport)
    compiled = torch.compile(lambda x: step(axis, x), backend=backend, fullgraph=True)
    with torch.inference_mode():
        out = compiled(torch.ones(4, 2))
    assert torch.equal(out, torch.full((4, 5), 7.0))
    assert transport.sent == [8 * 4.0]
    assert counts(ledger) == COUNTS


def test_an_axis_of_one_rank_counts_nothing() -> None:
    ledger = Ledger()
    axis = Communicator("tp", (3,), 0, None, ledger, CpuDevice())
    x = torch.ones(2)
    assert axis.all_reduce(x, "ffn") is x and axis.all_gather(x, [2], "logits") is x
    assert (ledger.rows(0), axis.backend, axis.buffer_bytes) == ([], "none", 0)


class Lazy(HostTimer):
    """Ends when it is told, as work on a GPU does."""

    immediate = False
    ended = False

    def seconds(self) -> float:
        return 0.5

    def stretch_ns(self) -> tuple[int, int]:
        return 1_000_000_000, 1_500_000_000

    def done(self) -> bool:
        return self.ended


def test_work_that_a_device_still_owes_is_known_and_timed_later() -> None:
    timers: list[Lazy] = []

    class Queueing(CpuDevice):
        immediate = False

        def timer(self) -> Timer:
            timers.append(Lazy())
            return timers[-1]

    ledger = Ledger()
    axis = Communicator("tp", (0, 1), 0, Alone(), ledger, Queueing())
    for layer in ("attention", "ffn"):
        axis.all_reduce(torch.ones(2), layer)
    found = axis.waiting()
    assert found is not None and (found.layer, found.sequence) == ("attention", 1)
    timers[0].ended = True
    found = axis.waiting()
    assert found is not None and found.layer == "ffn"
    timers[1].ended = True
    assert axis.waiting() is None
    assert [r["seconds"] for r in ledger.rows(0)] == [0.0, 0.0]
    axis.resolve()
    assert [r["seconds"] for r in ledger.rows(0)] == [0.5, 0.5]


def test_a_sends_time_on_the_wire_is_that_of_its_ended_works() -> None:
    class Work:
        def __init__(self, ended: bool, milliseconds: float):
            self._ended, self._milliseconds = ended, milliseconds

        def is_completed(self) -> bool:
            return self._ended

        def _get_duration(self) -> float:
            return self._milliseconds

    assert wire_seconds([Work(True, 500.0), Work(False, 9.0), Work(True, 250.0)]) == 0.75


@pytest.mark.parametrize(("on_wire", "hidden"), [(0.75, 0.25), (0.5, 0.0), (0.25, 0.0)])
def test_a_transfer_beyond_what_the_stream_waits_for_is_hidden(
    on_wire: float, hidden: float
) -> None:
    class Queueing(CpuDevice):
        immediate = False

        def timer(self) -> Timer:
            return Lazy()

    class Beside(Alone):
        def send(self, x: torch.Tensor, to: int) -> OnWire:
            return lambda: on_wire

    ledger = Ledger()
    ledger.begin_step("decode")
    axis = Communicator("pp", (0, 1), 0, Beside(), ledger, Queueing())
    axis.send(torch.ones(2), 1, "stage")
    ledger.begin_step("decode")
    axis.resolve()
    (row,) = ledger.rows(0)
    assert (row["exposed_seconds"], row["hidden_seconds"]) == (0.5, hidden)
    assert ledger.spans.sampled == [(0, 1, 1_000_000_000, 1_500_000_000, 8, 1)]
