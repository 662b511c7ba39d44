"""DeepSpeed's shared-memory all-reduce (its `csrc/cpu/comm/shm.cpp`): built once, made safe here.

The operator serves one static group per process. Its segment names come from MASTER_ADDR and
MASTER_PORT, so a token of the run takes the port's place while it starts; the segments are unlinked
as soon as every rank has mapped them. Integers and views are left to gloo: it would skip them.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from types import ModuleType

import torch

from parallel.collectives.choice import WORKSPACE_BYTES
from parallel.collectives.transport import Transport
from parallel.conversion.cache import cache_directory
from parallel.errors import RunError

_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_NAME = "tessera_shm_comm"


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
        if x.dtype in _TYPES and x.is_contiguous():
            self._all_reduce(x)
        else:
            self.general.all_reduce(x)

    def all_gather(self, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        if x.dtype not in _TYPES:
            return self.general.all_gather(x, sizes)
        out = x.new_zeros((*x.shape[:-1], sum(sizes)))
        out.narrow(-1, sum(sizes[: self.index]), x.shape[-1]).copy_(x)
        self._all_reduce(out)
        return out

    def send(self, x: torch.Tensor, to: int) -> None:
        self.general.send(x, to)

    def recv(self, x: torch.Tensor, source: int) -> None:
        self.general.recv(x, source)

    def flush(self) -> None:
        self.general.flush()


def start_shared_memory(
    general: Transport,
    reason: str,
    index: int,
    size: int,
    token: str,
    barrier: Callable[[], None],
) -> SharedMemoryTransport:
    """Maps the group's segments. `token` is the same on all ranks of the group and on no other
    group's; `barrier` waits for them all."""
    if index == 0:
        load_operator(quiet=False)
    barrier()
    module = load_operator(quiet=True)
    address = os.environ.get("MASTER_ADDR", "")
    barrier()
    with _environment(LOCAL_SIZE=str(size), MASTER_ADDR=address, MASTER_PORT=token):
        module.initialize(size, index)
    barrier()
    segment = Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{address}_{token}_{index}")
    segment.unlink(missing_ok=True)
    return SharedMemoryTransport(general, reason, index)


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


def load_operator(quiet: bool) -> ModuleType:
    """The extension module, from the cache or compiled. Importing all of DeepSpeed for it would
    cost two seconds: its sources are found without."""
    found = importlib.util.find_spec("deepspeed")
    if found is None or found.origin is None:
        raise RunError("deepspeed is not installed: its shared-memory operator can't be built")
    version = importlib.metadata.version("deepspeed")
    mark = f"{_NAME}_{version}_torch{torch.__version__}_{sys.implementation.cache_tag}"
    directory = (
        cache_directory()
        / "extensions"
        / "".join(c if c.isalnum() or c == "_" else "_" for c in mark)
    )
    library = directory / f"{_NAME}.so"
    if library.exists() and not (directory / "lock").exists():
        return _load(library)
    from torch.utils import cpp_extension

    directory.mkdir(parents=True, exist_ok=True)
    sources = Path(found.origin).parent / "ops" / "csrc" / "cpu"
    with _announced("building DeepSpeed's shared-memory all-reduce (once, then cached)", quiet):
        module: ModuleType = cpp_extension.load(
            name=_NAME,
            sources=[str(sources / "comm" / f) for f in ("shm_interface.cpp", "shm.cpp")],
            extra_include_paths=[str(sources / "includes")],
            extra_cflags=["-O2", "-fopenmp"],
            build_directory=str(directory),
        )
    return module


def _load(library: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(_NAME, str(library))
    spec = importlib.util.spec_from_file_location(_NAME, library, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@contextmanager
def _announced(what: str, quiet: bool) -> Iterator[None]:
    """A line with the seconds so far on a terminal, a line at start and end elsewhere."""
    if quiet:
        yield
        return
    began, done, terminal = time.monotonic(), Event(), sys.stderr.isatty()

    def show() -> None:
        while not done.wait(1.0):
            print(
                f"\r{what}: {time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True
            )

    print(f"{what} …", end="\r" if terminal else "\n", file=sys.stderr, flush=True)
    thread = Thread(target=show, daemon=True)
    if terminal:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if terminal:
            thread.join()
        print(f"{what}: took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
