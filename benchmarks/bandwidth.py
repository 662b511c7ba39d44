"""How fast this machine reads memory: `python -m benchmarks.bandwidth THREADS` prints JSON.

Every thread sums its own share of a buffer far larger than the caches, in huge pages where the
system gives them (`madvise`); the best of the passes counts, since it bounds what decoding can do.
"""

from __future__ import annotations

import argparse
import json
import mmap
import time

import torch

from parallel.units import MIB

_BUFFER_BYTES = 1024 * MIB
_SECONDS = 3.0


def read_bandwidth(threads: int, seconds: float = _SECONDS) -> float:
    """Bytes per second, the best pass within `seconds`."""
    torch.set_num_threads(threads)
    buffer = mmap.mmap(-1, _BUFFER_BYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    views = [torch.frombuffer(buffer, dtype=kind) for kind in (torch.int64, torch.float32)]
    views[0].fill_(1)
    best = float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for values in views:
            began = time.perf_counter()
            values.sum()
            best = min(best, time.perf_counter() - began)
    return _BUFFER_BYTES / best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("threads", type=int)
    count = parser.parse_args().threads
    print(json.dumps({"threads": count, "bytes_per_second": read_bandwidth(count)}))
