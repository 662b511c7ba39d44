"""How fast this machine reads memory: `python -m benchmarks.bandwidth THREADS` prints JSON.

Every thread reads its own share of a buffer far larger than the caches, in huge pages where the
system gives them (`madvise`), as a sum and, with native kernels, as a matrix times one row; the
best of the passes counts, since it bounds what decoding can do.
"""

from __future__ import annotations

import argparse
import json
import mmap
import time
from collections.abc import Callable

import torch

from parallel.devices.native.library import load
from parallel.hardware.probe import probe_local
from parallel.units import MIB

_BUFFER_BYTES = 1024 * MIB
_COLUMNS = 4096
_SECONDS = 3.0


def read_bandwidth(threads: int, seconds: float = _SECONDS) -> float:
    """Bytes per second, the best pass within `seconds`."""
    torch.set_num_threads(threads)
    buffer = mmap.mmap(-1, _BUFFER_BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    values = torch.frombuffer(buffer, dtype=torch.int64)
    values.fill_(1)
    reads: list[Callable[[], object]] = [
        values.sum,
        torch.frombuffer(buffer, dtype=torch.float32).sum,
    ]
    if probe_local(1).device(0).type.native_kernels:
        load()
        matrix = torch.frombuffer(buffer, dtype=torch.bfloat16).view(-1, _COLUMNS)
        row = torch.ones(1, _COLUMNS, dtype=torch.bfloat16)
        reads.append(lambda: torch.ops.tessera_native.product(row, matrix, None, False))
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for read in reads:
            began = time.perf_counter()
            read()
            best = min(best, time.perf_counter() - began)
    return _BUFFER_BYTES / best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("threads", type=int)
    count = parser.parse_args().threads
    print(json.dumps({"threads": count, "bytes_per_second": read_bandwidth(count)}))
