"""Turns a step's chunks into the flattened tensors of the model, in preallocated buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from parallel.devices.base import Device
from parallel.kernels.step import StepInput
from parallel.runtime.sequences import Chunk, Sequences


@dataclass(frozen=True)
class Sizes:
    """The largest step: `tokens`, `sequences`, cache blocks per sequence."""

    tokens: int
    sequences: int
    blocks: int
    block_tokens: int


class _Buffer:
    """A host tensor and its place on the device; only the part in use is copied. What a step needs
    is written into `values`, which no copy reads once `put` has returned."""

    def __init__(self, device: Device, *shape: int):
        self.device = device
        count = prod(shape)
        self.values = np.zeros(count, dtype=np.int64)
        self._plain = torch.from_numpy(self.values)
        self.host = device.host_buffer((count,), torch.int64)
        self.there = device.zeros((count,), torch.int64)

    @property
    def bytes(self) -> int:
        """On the device: on CPU the host's copy is there too."""
        where = self.there.device.type
        return sum(t.nbytes for t in (self.host, self.there) if t.device.type == where)

    def put(self, count: int) -> torch.Tensor:
        """The first `count` values, on the device."""
        host = self.host.narrow(0, 0, count)
        host.copy_(self._plain.narrow(0, 0, count))
        return self.device.upload(host, self.there.narrow(0, 0, count))


class InputBuffers:
    """One set of buffers; a pipeline keeps one per batch in flight."""

    def __init__(self, sizes: Sizes, device: Device):
        self.sizes, self._device = sizes, device
        self._copied = device.mark()
        self._ids = _Buffer(device, sizes.tokens)
        self._positions = _Buffer(device, sizes.tokens)
        self._slots = _Buffer(device, sizes.tokens)
        self._lengths = _Buffer(device, sizes.sequences)
        self._rows = _Buffer(device, sizes.sequences)
        self._tables = _Buffer(device, sizes.sequences, sizes.blocks)

    @property
    def bytes(self) -> int:
        held = (self._ids, self._positions, self._slots, self._lengths, self._rows, self._tables)
        return sum(buffer.bytes for buffer in held)

    def build(
        self, chunks: Sequence[Chunk], sequences: Sequences, width: int | None = None
    ) -> StepInput:
        """Block tables are `width` blocks wide, or as wide as the longest needs."""
        # The last step's copies may still be under way: its host memory is not free before.
        self._copied()
        decodes = sum(1 for c in chunks if c.count == 1)
        ends = [c.start + c.count for c in chunks]
        starts = [0, *accumulate(c.count for c in chunks)]
        sampled = [end - 1 for end, c in zip(starts[1:], chunks, strict=True) if c.samples]
        size = self.sizes.block_tokens
        width = width or max(-(-end // size) for end in ends)
        tables = self._tables.values[: len(chunks) * width].reshape(len(chunks), width)
        tables.fill(0)
        for row, (c, end) in enumerate(zip(chunks, ends, strict=True)):
            used = -(-end // size)
            tables[row, :used] = sequences[c.id].table.blocks[:used]
        self._fill_decodes(chunks[:decodes], sequences, tables)
        for row in range(decodes, len(chunks)):
            self._fill_chunk(chunks[row], sequences, tables[row], starts[row])
        self._lengths.values[: len(chunks)] = ends
        self._rows.values[: len(sampled)] = sampled
        step = StepInput(
            token_ids=self._ids.put(starts[-1]),
            positions=self._positions.put(starts[-1]),
            slots=self._slots.put(starts[-1]),
            # Side by side: a copy with gaps isn't one copy, and on CUDA waits for the device.
            block_tables=self._tables.put(tables.size).view(tables.shape),
            context_lengths=self._lengths.put(len(chunks)),
            logit_rows=self._rows.put(len(sampled)),
            query_starts=tuple(starts),
            context_tokens=tuple(ends),
            decodes=decodes,
        )
        self._copied = self._device.mark()
        return step

    def _fill_decodes(
        self, chunks: Sequence[Chunk], sequences: Sequences, tables: NDArray[np.int64]
    ) -> None:
        """All chunks of one token at once."""
        count, size = len(chunks), self.sizes.block_tokens
        at = self._positions.values[:count]
        at[:] = [c.start for c in chunks]
        self._ids.values[:count] = [sequences[c.id].tokens[c.start] for c in chunks]
        blocks = tables[np.arange(count), at // size]
        self._slots.values[:count] = blocks * size + at % size

    def _fill_chunk(
        self, chunk: Chunk, sequences: Sequences, table: NDArray[np.int64], begin: int
    ) -> None:
        size, end = self.sizes.block_tokens, chunk.start + chunk.count
        place = slice(begin, begin + chunk.count)
        at = np.arange(chunk.start, end)
        self._positions.values[place] = at
        self._ids.values[place] = sequences[chunk.id].tokens[chunk.start : end]
        self._slots.values[place] = table[at // size] * size + at % size
