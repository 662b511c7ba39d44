"""Collectives by operation, group size and bytes, through the runtime's own communicators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from parallel.calibration.bench import Bench, Timing
from parallel.calibration.fit import CollectivePoint
from parallel.collectives.communicator import Communicator
from parallel.collectives.transport import ProcessGroupTransport, Transport
from parallel.devices.base import Device
from parallel.hardware.facts import Launch
from parallel.instrument.ledger import Ledger
from parallel.units import KIB, MIB

SIZES = tuple(n * KIB for n in (1, 4, 16, 64, 128, 256, 512, 1024, 4096, 8192))
"""Bytes of the full array: from one row's hidden states to those of a long prompt's chunk."""
CUDA_SIZES = (*SIZES, 32 * MIB, 128 * MIB)
GENERAL_OPERATIONS = ("all_reduce", "all_gather", "send")
_GRAPH_CALLS = 16
_LAYER = "calibration"


@dataclass(frozen=True)
class Case:
    """`call` does `count` operations, one after the other."""

    operation: str
    full_bytes: int
    count: int
    call: Callable[[], object]


@dataclass(frozen=True)
class Group:
    """Some ranks, and how bytes move among them."""

    communicator: Communicator
    transport: Transport


@dataclass(frozen=True)
class Measured:
    """What one group took with one backend."""

    backend: str
    points: list[CollectivePoint]
    timings: list[Timing]


def group_sizes(world: int) -> tuple[int, ...]:
    """Powers of two, and all."""
    sizes = {world, *(1 << n for n in range(1, world.bit_length()))}
    return tuple(sorted(size for size in sizes if 1 < size <= world))


def make_group(
    ranks: Sequence[int], rank: int, device: Device, axis: str = "tp", batches: int = 1
) -> Group | None:
    """Over NCCL or gloo; None where `rank` isn't a member. All ranks of the world call it."""
    group = dist.new_group(list(ranks))
    if rank not in ranks:
        return None
    name = "nccl" if device.kind == "cuda" else "gloo"
    transport = ProcessGroupTransport(group, ranks, name, "measured", batches)
    index = list(ranks).index(rank)
    return Group(Communicator(axis, ranks, index, transport, Ledger(), device), transport)


def measure_eager(
    bench: Bench,
    communicator: Communicator,
    device: Device,
    operations: Sequence[str],
    budget_seconds: float,
    starter: Communicator | None = None,
) -> Measured:
    """As the layers call them. All members of the group call it. They start together by an
    all-reduce over `starter`, their own group where it isn't given."""
    sizes = CUDA_SIZES if device.kind == "cuda" else SIZES
    cases = list(_cases(communicator, device, operations, sizes))
    found = _measure(bench, communicator, cases, "eager", budget_seconds, starter)
    communicator.flush()
    communicator.resolve()
    return found


def measure_graph(
    bench: Bench, group: Group, device: Device, budget_seconds: float
) -> Measured | None:
    """All-reduces replayed from CUDA graphs; None where the backend can't be captured."""
    graphs = []
    for full_bytes in CUDA_SIZES:
        x = device.zeros((full_bytes // 2,), torch.bfloat16)
        replay = _captured(partial(group.transport.all_reduce, x))
        if replay is not None:
            graphs.append(Case("all_reduce", full_bytes, _GRAPH_CALLS, replay))
    if min(bench.peers.gather(len(graphs))) < len(CUDA_SIZES):
        return None
    return _measure(bench, group.communicator, graphs, "graph", budget_seconds)


def _measure(
    bench: Bench,
    communicator: Communicator,
    cases: Sequence[Case],
    launch: Launch,
    budget_seconds: float,
    starter: Communicator | None = None,
) -> Measured:
    start = torch.zeros(1, dtype=torch.bfloat16, device=communicator.device.torch_device)
    timings = bench.measure(
        [case.call for case in cases],
        budget_seconds,
        before=partial((starter or communicator).all_reduce, start, _LAYER),
    )
    points = [
        CollectivePoint(
            case.operation, communicator.size, case.full_bytes, launch, timing.seconds / case.count
        )
        for case, timing in zip(cases, timings, strict=True)
    ]
    return Measured(communicator.backend, points, timings)


def _cases(
    communicator: Communicator, device: Device, operations: Sequence[str], sizes: Sequence[int]
) -> Iterator[Case]:
    size = communicator.size
    for operation in operations:
        for full_bytes in sizes:
            elements = full_bytes // 2
            x = device.zeros((1, elements), torch.bfloat16)
            if operation == "all_reduce":
                call: Callable[[], object] = partial(communicator.all_reduce, x, _LAYER)
                yield Case(operation, full_bytes, 1, call)
            elif operation == "all_gather":
                piece = elements // size
                own, pieces = x.narrow(1, 0, piece).contiguous(), [piece] * size
                call = partial(communicator.all_gather, own, pieces, _LAYER)
                yield Case(operation, full_bytes, 1, call)
            else:
                yield Case(operation, full_bytes, size, partial(_pass_around, communicator, x))


def _pass_around(communicator: Communicator, x: torch.Tensor) -> None:
    """Around the ring of ranks: as many sends as there are ranks, one after the other."""
    index, size = communicator.index, communicator.size
    if index == 0:
        communicator.send(x, 1, _LAYER)
        communicator.recv(x, size - 1, _LAYER)
    else:
        communicator.recv(x, index - 1, _LAYER)
        communicator.send(x, (index + 1) % size, _LAYER)
    communicator.flush()


def _captured(call: Callable[[], object]) -> Callable[[], object] | None:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(_GRAPH_CALLS):
                call()
    except RuntimeError:
        return None
    return graph.replay
