"""DeepSpeed's shared-memory all-reduce (its `csrc/cpu/comm/shm.cpp`), made safe.

The operator serves one static group per process. Its segment names come from MASTER_ADDR and
MASTER_PORT, so a token of the run takes the port's place while it starts; the segments are unlinked
as soon as every rank has mapped them. What it would skip without a word (integers, views, 2 GiB and
more: its sizes are C ints) is left to gloo.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch

from parallel.collectives.choice import WORKSPACE_BYTES, RankFacts, group_mark, served_token
from parallel.collectives.exchange import Exchange
from parallel.collectives.operator_build import build_operator, load_operator
from parallel.collectives.transport import OnWire, Transport
from parallel.errors import RunError

_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_LEAST_TOO_LARGE_BYTES = 1 << 31
_BUILD_TIMEOUT = timedelta(minutes=30)


class SharedMemoryTransport(Transport):
    """All-reduces through shared memory, gathers as an all-reduce of zero-filled pieces; what the
    operator can't take goes to `general`."""

    name = "shared_memory"
    buffer_bytes = WORKSPACE_BYTES

    def __init__(self, general: Transport, reason: str, index: int):
        self.general, self.reason, self.index = general, reason, index
        self._all_reduce: Callable[[torch.Tensor], torch.Tensor] = (
            torch.ops.deepspeed.inference_all_reduce_.default
        )

    def all_reduce(self, x: torch.Tensor) -> None:
        if x.dtype in _TYPES and x.is_contiguous() and x.nbytes < _LEAST_TOO_LARGE_BYTES:
            self._all_reduce(x)
        else:
            self.general.all_reduce(x)

    def all_gather(self, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        full_bytes = x.numel() // x.shape[-1] * sum(sizes) * x.element_size()
        if x.dtype not in _TYPES or full_bytes >= _LEAST_TOO_LARGE_BYTES:
            return self.general.all_gather(x, sizes)
        out = x.new_zeros((*x.shape[:-1], sum(sizes)))
        out.narrow(-1, sum(sizes[: self.index]), x.shape[-1]).copy_(x)
        self._all_reduce(out)
        return out

    def send(self, x: torch.Tensor, to: int) -> OnWire | None:
        return self.general.send(x, to)

    def recv(self, x: torch.Tensor, source: int) -> None:
        self.general.recv(x, source)

    def flush(self) -> None:
        self.general.flush()


class _StaticGroup:
    """The group that this process's library was started for: as static as its own variables."""

    mark = ""


_static_group = _StaticGroup()


def own_facts(native: bool) -> RankFacts:
    return RankFacts.here(serves=_static_group.mark, native=native)


def start_shared_memory(
    general: Transport,
    reason: str,
    exchange: Exchange,
    ranks: Sequence[int],
    facts: Sequence[RankFacts],
) -> SharedMemoryTransport:
    """Builds, loads and maps on all `ranks` of the group together; `facts` are theirs.

    Raises `RunError` on each of them when one of them can't."""
    key, index = f"shared_memory/{ranks[0]}", ranks.index(exchange.rank)
    if index == 0:
        exchange.put(f"{key}/built", _build())
    problem = exchange.get(f"{key}/built", _BUILD_TIMEOUT)
    problems = exchange.collect(f"{key}/loaded", problem or _load(), ranks)
    problem = next((p for p in problems if p), "")
    if problem:
        raise RunError(problem)
    if not served_token(facts):
        if index == 0:
            exchange.put(f"{key}/token", secrets.token_hex(8))
        _map(exchange.get(f"{key}/token"), index, exchange, key, ranks)
    return SharedMemoryTransport(general, reason, index)


def _build() -> str:
    try:
        build_operator()
    except RunError as error:
        return str(error)
    return ""


def _load() -> str:
    try:
        load_operator()
    except (ImportError, OSError) as error:
        return f"DeepSpeed's operator doesn't load: {error}"
    return ""


def _map(token: str, index: int, exchange: Exchange, key: str, ranks: Sequence[int]) -> None:
    """Maps the segments of the group. `token` is the same on all its ranks and on no others."""
    address = os.environ.get("MASTER_ADDR", "")
    segment = Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{address}_{token}_{index}")
    module = load_operator()
    # The operator waits for its peers' segments without end: only when all are about to make them.
    exchange.barrier(f"{key}/ready", ranks)
    try:
        with _environment(LOCAL_SIZE=str(len(ranks)), MASTER_ADDR=address, MASTER_PORT=token):
            module.initialize(len(ranks), index)
        exchange.barrier(f"{key}/mapped", ranks)
    finally:
        segment.unlink(missing_ok=True)
    _static_group.mark = group_mark(token, index, len(ranks))


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                del os.environ[name]
            else:
                os.environ[name] = old
