"""What ranks of the pool do in the tests of collectives."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from parallel.collectives.control import ControlChannel
from parallel.collectives.lifeline import Lifeline
from parallel.collectives.mesh import Mesh, MeshOptions
from parallel.collectives.watchdog import Watchdog
from parallel.devices.cpu import CpuDevice
from parallel.instrument.ledger import Ledger
from parallel.layout.degrees import Degrees

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _mesh(
    rank: int, degrees: list[int], collectives: str, native: bool = False
) -> tuple[Mesh, Ledger]:
    ledger = Ledger()
    device = CpuDevice(1, native)
    return Mesh.create(
        Degrees(*degrees), rank, device, ledger, MeshOptions(collectives, 60)
    ), ledger


def reduce_and_gather(
    rank: int, degrees: list[int], collectives: str, native: bool = False
) -> dict[str, Any]:
    """Sums and gathers of every format and of shapes around the backends' thresholds."""
    mesh, ledger = _mesh(rank, degrees, collectives, native)
    tp = mesh.tp
    sums: list[bool] = []
    for name, dtype in DTYPES.items():
        for shape in ((1,), (3, 7), (8, 1024), (5, 3, 11), (1024, 700)):
            count = torch.Size(shape).numel()
            mine = (torch.arange(count) % 13 + tp.index).view(shape).to(dtype)
            want = sum((torch.arange(count) % 13 + i).view(shape).to(dtype) for i in range(tp.size))
            assert isinstance(want, torch.Tensor), name
            sums.append(torch.equal(tp.all_reduce(mine, "test"), want))
    whole = torch.arange(24.0).view(4, 6)
    view = whole.t().contiguous().t()
    sums.append(torch.equal(tp.all_reduce(view, "test"), whole * tp.size))
    integers = torch.tensor([tp.index + 1])
    total = tp.size * (tp.size + 1) // 2
    sums.append(int(tp.all_reduce(integers, "test")) == total)
    sizes = [3, 1, 2, 5][: tp.size]
    gathered = tp.all_gather(torch.full((2, sizes[tp.index]), float(tp.index)), sizes, "logits")
    want = torch.cat([torch.full((2, n), float(i)) for i, n in enumerate(sizes)], dim=1)
    shm = [
        p.name for p in Path("/dev/shm").iterdir() if p.name.startswith(("deepspeed", "tessera"))
    ]
    answer = {
        "sums": sums,
        "gathered": torch.equal(gathered, want),
        "backend": tp.backend,
        "reason": tp.reason,
        "rows": ledger.rows(rank),
        "segments": shm,
        "buffer_bytes": mesh.buffer_bytes,
    }
    mesh.close()
    return answer


def pass_along(rank: int, degrees: list[int], native: bool) -> dict[str, Any]:
    """Every stage adds its place to several batches in flight and sends them on."""
    mesh, ledger = _mesh(rank, degrees, "auto", native)
    pp, seen = mesh.pp, []
    for batch in range(6):
        x = torch.full((3, 5), float(batch))
        if pp.index > 0:
            pp.recv(x, pp.index - 1, "stage")
        x = x + 10 ** (pp.index + 1)
        if pp.index < pp.size - 1:
            pp.send(x, pp.index + 1, "stage")
        seen.append(float(x[0, 0]))
    pp.flush()
    answer = {
        "seen": seen,
        "rows": ledger.rows(rank),
        "backend": pp.backend,
        "reason": pp.reason,
        "buffer_bytes": pp.buffer_bytes,
    }
    mesh.close()
    return answer


def control(rank: int, degrees: list[int]) -> list[Any]:
    mesh, _ = _mesh(rank, degrees, "gloo")
    channel = ControlChannel.open(mesh, tuple(range(mesh.exchange.world_size)))
    out: list[Any] = []
    if rank == 0:
        channel.broadcast({"op": "step", "tokens": [[1, 2]]})
        out = channel.gather()
    else:
        message = channel.receive()
        channel.reply({"rank": rank, "got": message["tokens"]})
    mesh.exchange.barrier("done", range(mesh.exchange.world_size))
    channel.close()
    mesh.close()
    return out


def late(
    rank: int, degrees: list[int], collectives: str, op: str, native: bool = False
) -> list[str]:
    """The first rank of a pipeline, or the last of a group, stays away until the others' watchdogs
    have spoken."""
    mesh, _ = _mesh(rank, degrees, collectives, native)
    communicator = mesh.pp if op == "recv" else mesh.tp
    said: list[str] = []
    dog = Watchdog.start(mesh, 1.0, lambda error: said.append(str(error)))
    world = range(mesh.exchange.world_size)
    away = 0 if op == "recv" else max(world)

    def meet() -> None:
        x = torch.ones(4, 6)
        if op == "all_reduce":
            communicator.all_reduce(x, "ffn")
        elif communicator.index == 0:
            communicator.send(x, 1, "stage")
        else:
            communicator.recv(x, communicator.index - 1, "stage")

    if rank == away:
        while not mesh.exchange.store.check([f"spoken/{r}" for r in world if r != rank]):
            time.sleep(0.1)
    else:

        def tell() -> None:
            while not said:
                time.sleep(0.05)
            mesh.exchange.put(f"spoken/{rank}", said)

        Thread(target=tell, daemon=True).start()
    meet()
    communicator.flush()
    dog.stop()
    mesh.close()
    return said


def failed_build(rank: int, degrees: list[int], cache: str) -> dict[str, Any]:
    """A compiler that is there and fails, and nothing in the cache."""
    kept = {name: os.environ.get(name) for name in ("CXX", "TESSERA_CACHE")}
    os.environ.update(CXX="false", TESSERA_CACHE=cache)
    try:
        mesh, _ = _mesh(rank, degrees, "auto")
    finally:
        for name, value in kept.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
    total = mesh.tp.all_reduce(torch.tensor([rank + 1.0]), "test")
    answer = {"backend": mesh.tp.backend, "reason": mesh.tp.reason, "sum": float(total)}
    mesh.close()
    return answer


def goodbye(rank: int, degrees: list[int]) -> list[str]:
    """An orderly end is no death."""
    mesh, _ = _mesh(rank, degrees, "gloo")
    said: list[str] = []
    line = Lifeline.open(mesh, said.append)
    mesh.exchange.barrier("up", range(mesh.exchange.world_size))
    line.close()
    mesh.close()
    return said


def environment_kept(rank: int, degrees: list[int]) -> bool:
    before = {k: os.environ.get(k) for k in ("LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    mesh, _ = _mesh(rank, degrees, "shared_memory")
    mesh.close()
    return before == {k: os.environ.get(k) for k in before}
