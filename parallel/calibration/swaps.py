"""How fast blocks of a cache go to host memory and back, while the neighbours move theirs."""

from __future__ import annotations

import torch

from parallel.calibration.bench import Bench, Timing
from parallel.devices.base import Device
from parallel.kernels.block_moves import BlockMover, BlockMoves
from parallel.kernels.cache import KVCache, LayerCache

_LAYERS, _BLOCKS = 24, 64
_SHAPE = (_BLOCKS, 16, 4, 64)
"""Of each layer's keys, and of its values: 24 MiB in all, more than a core finds in its cache."""


def measure_swaps(bench: Bench, device: Device, budget_seconds: float) -> tuple[float, Timing]:
    """Bytes per second of one rank, either way in turn, as the runtime moves them."""
    layers = {
        layer: LayerCache(*(device.zeros(_SHAPE, torch.bfloat16) for _ in range(2)))
        for layer in range(_LAYERS)
    }
    mover = BlockMover(KVCache(layers, _BLOCKS, _SHAPE[1]), _BLOCKS, device)
    pairs = [(block, block) for block in range(_BLOCKS)]

    def there_and_back() -> None:
        mover.run(BlockMoves(out=pairs))
        mover.run(BlockMoves(back=pairs))

    (timing,) = bench.measure([there_and_back], budget_seconds)
    return 2 * _BLOCKS * mover.block_bytes / timing.seconds, timing
