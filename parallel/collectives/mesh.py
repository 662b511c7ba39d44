"""The mesh of ranks: process groups for each axis, made once and handed down as an object."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from parallel.collectives.addresses import choose_gloo_interface
from parallel.collectives.channels import start_channels
from parallel.collectives.choice import RankFacts, all_native, choose_all_reduce
from parallel.collectives.communicator import Communicator
from parallel.collectives.exchange import Exchange
from parallel.collectives.shared_memory import own_facts, start_shared_memory
from parallel.collectives.shared_memory_native import start_native_shared_memory
from parallel.collectives.symmetric_memory import start_symmetric_memory
from parallel.collectives.transport import ProcessGroupTransport, Transport
from parallel.devices.base import Device
from parallel.devices.fake import FakeCudaDevice
from parallel.errors import ConfigError, RunError
from parallel.instrument.ledger import Ledger
from parallel.layout.degrees import AXES, Degrees

_GRACE_SECONDS = 30.0
"""How much later than the watchdog, which knows the ranks' names, the backends give up."""


@dataclass(frozen=True)
class MeshOptions:
    """`collectives` is 'auto', 'gloo' or 'shared_memory' (CPU); `batches` may be in flight;
    `symmetric_memory`: of tensor-parallel GPUs that can read each other's."""

    collectives: str = "auto"
    timeout_seconds: float = 120.0
    batches: int = 1
    symmetric_memory: bool = False


class Mesh:
    """`tp`, `pp` and `dp` are this rank's communicators."""

    def __init__(
        self,
        degrees: Degrees,
        rank: int,
        device: Device,
        communicators: dict[str, Communicator],
        exchange: Exchange,
    ):
        self.degrees, self.rank, self.device = degrees, rank, device
        self.coordinates = degrees.coordinates(rank)
        self.communicators, self.exchange = communicators, exchange
        self.tp, self.pp, self.dp = (communicators[axis] for axis in AXES)

    @classmethod
    def create(
        cls, degrees: Degrees, rank: int, device: Device, ledger: Ledger, options: MeshOptions
    ) -> Mesh:
        """Joins the process group that the environment names (torchrun's variables) and makes the
        groups of each axis; on a world of one nothing is started."""
        world = degrees.world_size
        if world == 1:
            exchange = Exchange(HashStore(), 0, 1)
        else:
            exchange = Exchange(_join(rank, world, device, options), rank, world)
        groups = {axis: _groups(degrees, axis, rank, options) for axis in AXES}
        # A batch leaves once for each receiver.
        sends = options.batches * max(1, len(degrees.receivers(rank)))
        own = replace(options, batches=sends)
        facts = _facts(exchange, device)
        communicators = {}
        for axis in AXES:
            ranks = degrees.group(axis, rank)
            transport = None
            if len(ranks) > 1:
                transport = _transport(axis, ranks, groups[axis], exchange, device, facts, own)
            index = ranks.index(rank)
            communicators[axis] = Communicator(axis, ranks, index, transport, ledger, device)
        return cls(degrees, rank, device, communicators, exchange)

    @classmethod
    def dry(cls, degrees: Degrees, rank: int, device: FakeCudaDevice, ledger: Ledger) -> Mesh:
        """One rank of a world that isn't there, on torch's `fake` backend."""
        from torch.testing._internal.distributed.fake_pg import FakeStore

        store = FakeStore()
        dist.init_process_group("fake", store=store, rank=rank, world_size=degrees.world_size)
        communicators = {}
        for axis in AXES:
            ranks = degrees.group(axis, rank)
            transport = None
            if len(ranks) > 1:
                group = dist.new_group(list(ranks), backend="fake")
                transport = ProcessGroupTransport(group, ranks, "fake", "dry run", 1)
            index = ranks.index(rank)
            communicators[axis] = Communicator(axis, ranks, index, transport, ledger, device)
        return cls(degrees, rank, device, communicators, Exchange(HashStore(), rank, 1))

    @property
    def buffer_bytes(self) -> int | None:
        """What the backends hold in buffers; None where one of them doesn't say."""
        sizes = [c.buffer_bytes for c in self.communicators.values()]
        return None if None in sizes else sum(s for s in sizes if s is not None)

    def describe(self) -> list[str]:
        """One line for each axis of more than one rank: its backend, and why."""
        return [
            f"{axis}: {c.size} ranks over {c.backend} ({c.reason})"
            for axis, c in self.communicators.items()
            if c.size > 1
        ]

    def collect(self, key: str, value: Any) -> list[Any] | None:
        """Everybody's value on rank 0, None elsewhere."""
        self.exchange.put(f"{key}/{self.rank}", value)
        if self.rank != 0:
            return None
        return [self.exchange.get(f"{key}/{r}") for r in range(self.exchange.world_size)]

    def close(self) -> None:
        """Leaves the groups: gloo aborts in processes that exit without it."""
        for communicator in self.communicators.values():
            communicator.close()
        if dist.is_initialized():
            if self.exchange.world_size > 1:
                self.exchange.leave()
            dist.destroy_process_group()


def _join(rank: int, world: int, device: Device, options: MeshOptions) -> Store:
    timeout = timedelta(seconds=options.timeout_seconds)
    if device.kind == "cpu":
        choose_gloo_interface()
    try:
        store, _, _ = next(rendezvous("env://", rank, world, timeout=timeout))
        # Torch elastic's store outlives ranks: those of a restart mustn't read the dead ones' keys.
        store = PrefixStore(f"attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(
            "nccl" if device.kind == "cuda" else "gloo",
            store=PrefixStore("groups", store),
            rank=rank,
            world_size=world,
            timeout=timeout + timedelta(seconds=_GRACE_SECONDS),
            device_id=device.torch_device if device.kind == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RunError(
            f"rank {rank} of {world} on {socket.gethostname()} couldn't join the job at {where}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return PrefixStore("tessera", store)


def _groups(
    degrees: Degrees, axis: str, rank: int, options: MeshOptions
) -> dist.ProcessGroup | None:
    """Makes all groups of an axis in the same order on every rank; returns the own one."""
    mine = None
    timeout = timedelta(seconds=options.timeout_seconds + _GRACE_SECONDS)
    for group in sorted({degrees.group(axis, r) for r in range(degrees.world_size)}):
        if len(group) < 2:
            continue
        made = dist.new_group(list(group), timeout=timeout)
        if rank in group:
            mine = made
    return mine


def _facts(exchange: Exchange, device: Device) -> list[RankFacts]:
    if device.kind == "cuda" or exchange.world_size == 1:
        return []
    return [RankFacts(**f) for f in exchange.collect("facts", own_facts(device.native).to_wire())]


def _transport(
    axis: str,
    ranks: tuple[int, ...],
    group: dist.ProcessGroup | None,
    exchange: Exchange,
    device: Device,
    facts: list[RankFacts],
    options: MeshOptions,
) -> Transport:
    assert group is not None
    if device.kind == "cuda":
        nccl = ProcessGroupTransport(group, ranks, "nccl", "CUDA devices", options.batches)
        if not options.symmetric_memory or axis != "tp":
            return nccl
        host = socket.gethostname()
        return start_symmetric_memory(nccl, group, exchange, ranks, device, host)
    members = [facts[r] for r in ranks]
    backend, reason = choose_all_reduce(options.collectives, axis, members, facts)
    if backend == "shared_memory":
        general = ProcessGroupTransport(group, ranks, "gloo", reason, options.batches)
        try:
            if axis == "pp":
                return start_channels(general, reason, exchange, ranks)
            if all_native(members):
                return start_native_shared_memory(general, reason, exchange, ranks)
            return start_shared_memory(general, reason, exchange, ranks, members)
        except RunError as error:
            if options.collectives == backend:
                raise ConfigError(
                    f"collectives=shared_memory can't be had: {error}; say collectives=auto"
                ) from error
            reason = str(error)
    return ProcessGroupTransport(group, ranks, "gloo", reason, options.batches)
