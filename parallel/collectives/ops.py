"""Collectives as custom operators, so that fake tensors, compilers and graph capture see them.

Operators take plain values only; a communicator is named by a handle of this module's registry,
which its process fills when a communicator is made and empties when it is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol

import torch
from torch._C import _len_torch_dispatch_stack
from torch._C._autograd import _profiler_enabled
from torch.fx.node import has_side_effect


class Runner(Protocol):
    """What an operator hands its call to: a communicator."""

    def run_all_reduce(self, x: torch.Tensor, layer: str) -> None: ...

    def run_all_gather(self, x: torch.Tensor, sizes: Sequence[int], layer: str) -> torch.Tensor: ...

    def run_reduce_scatter(self, x: torch.Tensor, layer: str) -> torch.Tensor: ...

    def run_gather_rows(self, x: torch.Tensor, layer: str) -> torch.Tensor: ...

    def run_send(self, x: torch.Tensor, to: int, layer: str) -> None: ...

    def run_recv(self, x: torch.Tensor, source: int, layer: str) -> None: ...

    def dry_run(self, op: str, x: torch.Tensor, layer: str, sizes: Sequence[int] = ()) -> None: ...


_library = torch.library.Library("tessera", "DEF")
_library.define("all_reduce_(Tensor(a!) x, int communicator, str layer) -> ()")
_library.define("all_gather(Tensor x, int[] sizes, int communicator, str layer) -> Tensor")
_library.define("reduce_scatter(Tensor(a!) x, int ranks, int communicator, str layer) -> Tensor")
_library.define("gather_rows(Tensor x, int ranks, int communicator, str layer) -> Tensor")
_library.define("send(Tensor x, int to, int communicator, str layer) -> ()")
_library.define("recv_(Tensor(a!) x, int source, int communicator, str layer) -> ()")

_communicators: dict[int, Runner] = {}
_handles = count()


def register(communicator: Runner) -> int:
    handle = next(_handles)
    _communicators[handle] = communicator
    return handle


def forget(handle: int) -> None:
    _communicators.pop(handle, None)


def is_watched(x: torch.Tensor) -> bool:
    """Whether anyone sees operators: a compiler, a profiler, a mode, a tensor that isn't plain. For
    nobody the way through the dispatcher costs as much as a small all-reduce does."""
    return (
        torch.compiler.is_compiling()
        or type(x) is not torch.Tensor
        or _len_torch_dispatch_stack() > 0
        or _profiler_enabled()
    )


def _all_reduce(x: torch.Tensor, communicator: int, layer: str) -> None:
    _communicators[communicator].run_all_reduce(x, layer)


def _all_gather(
    x: torch.Tensor, sizes: Sequence[int], communicator: int, layer: str
) -> torch.Tensor:
    return _communicators[communicator].run_all_gather(x, sizes, layer)


def _reduce_scatter(x: torch.Tensor, ranks: int, communicator: int, layer: str) -> torch.Tensor:
    return _communicators[communicator].run_reduce_scatter(x, layer)


def _gather_rows(x: torch.Tensor, ranks: int, communicator: int, layer: str) -> torch.Tensor:
    return _communicators[communicator].run_gather_rows(x, layer)


def _send(x: torch.Tensor, to: int, communicator: int, layer: str) -> None:
    _communicators[communicator].run_send(x, to, layer)


def _recv(x: torch.Tensor, source: int, communicator: int, layer: str) -> None:
    _communicators[communicator].run_recv(x, source, layer)


for _key in ("CPU", "CUDA"):
    _library.impl("all_reduce_", _all_reduce, _key)
    _library.impl("all_gather", _all_gather, _key)
    _library.impl("reduce_scatter", _reduce_scatter, _key)
    _library.impl("gather_rows", _gather_rows, _key)
    _library.impl("send", _send, _key)
    _library.impl("recv_", _recv, _key)


# Without data the calls and bytes of a dry run are counted all the same: it proves the plan's.


def _fake_all_reduce(x: torch.Tensor, communicator: int, layer: str) -> None:
    _communicators[communicator].dry_run("all_reduce", x, layer)


def _fake_all_gather(
    x: torch.Tensor, sizes: Sequence[int], communicator: int, layer: str
) -> torch.Tensor:
    _communicators[communicator].dry_run("all_gather", x, layer, sizes)
    return x.new_empty((*x.shape[:-1], sum(sizes)))


def _fake_reduce_scatter(
    x: torch.Tensor, ranks: int, communicator: int, layer: str
) -> torch.Tensor:
    _communicators[communicator].dry_run("reduce_scatter", x, layer)
    return x.new_empty((x.shape[0] // ranks, *x.shape[1:]))


def _fake_gather_rows(x: torch.Tensor, ranks: int, communicator: int, layer: str) -> torch.Tensor:
    _communicators[communicator].dry_run("all_gather", x, layer, [x.shape[-1]])
    return x.new_empty((x.shape[0] * ranks, *x.shape[1:]))


def _fake_send(x: torch.Tensor, to: int, communicator: int, layer: str) -> None:
    _communicators[communicator].dry_run("send", x, layer)


def _fake_recv(x: torch.Tensor, source: int, communicator: int, layer: str) -> None:
    _communicators[communicator].dry_run("recv", x, layer)


for _name, _fake in (
    ("all_reduce_", _fake_all_reduce),
    ("all_gather", _fake_all_gather),
    ("reduce_scatter", _fake_reduce_scatter),
    ("gather_rows", _fake_gather_rows),
    ("send", _fake_send),
    ("recv_", _fake_recv),
):
    torch.library.register_fake(f"tessera::{_name}", _fake, lib=_library)

all_reduce_ = torch.ops.tessera.all_reduce_.default
all_gather = torch.ops.tessera.all_gather.default
reduce_scatter = torch.ops.tessera.reduce_scatter.default
gather_rows = torch.ops.tessera.gather_rows.default
send = torch.ops.tessera.send.default
recv_ = torch.ops.tessera.recv_.default

BODIES: dict[object, Callable[..., torch.Tensor | None]] = {
    all_reduce_: _all_reduce,
    all_gather: _all_gather,
    reduce_scatter: _reduce_scatter,
    gather_rows: _gather_rows,
    send: _send,
    recv_: _recv,
}
"""What the operators do on real tensors, for those who look inside."""

# It has no result that a graph could need: without this, compilers drop it as dead code.
has_side_effect(send)
