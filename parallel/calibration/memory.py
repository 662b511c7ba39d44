"""How fast a rank reads memory that no cache holds, while its neighbours do the same."""

from __future__ import annotations

from pathlib import Path

import torch

from parallel.calibration.bench import Bench, Timing
from parallel.devices.base import Device
from parallel.units import MIB

_LEAST_COLD_BYTES = 16 * MIB
_BEYOND_CACHE_BYTES = 256 * MIB
_CUDA_COLD_BYTES = 256 * MIB
_UNKNOWN_CACHE_BYTES = 32 * MIB
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cold_bytes(device: Device, ranks: int, root: Path = Path("/")) -> int:
    """What each of `ranks` on this host must walk through to find nothing cached: three times the
    last cache among them, but not more than `_BEYOND_CACHE_BYTES` over it. (A virtual machine is
    told the whole of a cache that it shares with others, up to half a GiB.)"""
    if device.kind == "cuda":
        return _CUDA_COLD_BYTES
    cache = last_cache_bytes(root)
    return max(_LEAST_COLD_BYTES, min(3 * cache, cache + _BEYOND_CACHE_BYTES) // ranks)


def last_cache_bytes(root: Path = Path("/")) -> int:
    """The largest cache of the first core, as Linux says it."""
    folder = root / "sys/devices/system/cpu/cpu0/cache"
    sizes = [_size(path) for path in folder.glob("index*/size")]
    return max(sizes, default=0) or _UNKNOWN_CACHE_BYTES


def _size(path: Path) -> int:
    try:
        word = path.read_text().strip()
    except OSError:
        return 0
    unit = _UNITS.get(word[-1:], 1)
    digits = word.rstrip("KMG")
    return int(digits) * unit if digits.isdigit() else 0


def measure_read(
    bench: Bench, device: Device, bytes_per_rank: int, budget_seconds: float
) -> tuple[float, Timing]:
    """Bytes per second of a sum over `bytes_per_rank`."""
    values = device.weight((bytes_per_rank // 4,), torch.float32).fill_(1.0)
    (timing,) = bench.measure([values.sum], budget_seconds)
    return values.nbytes / timing.seconds, timing
