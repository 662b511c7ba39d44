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
from parallel.runtime.sequences import BlockTable, Chunk, Sequences, SequenceState


@dataclass(frozen=True)
class Sizes:
    """The largest step: `tokens`, `sequences`, cache blocks per sequence."""

    tokens: int
    sequences: int
    blocks: int
    block_tokens: int


class _Buffer:
    """Numbers on the device, and `values`, the host's side of them: the same memory where the
    device is the host, else only the part in use is copied."""

    def __init__(self, device: Device, *shape: int):
        self._device = device
        count = prod(shape)
        host = device.host_buffer((count,), torch.int64)
        self.values = device.array(host)
        self._host = None if host.device.type == device.torch_device.type else host
        self._there = host if self._host is None else device.zeros((count,), torch.int64)

    @property
    def bytes(self) -> int:
        """On the device."""
        return self._there.nbytes

    def put(self, count: int) -> torch.Tensor:
        """The first `count` values, on the device."""
        there = self._there.narrow(0, 0, count)
        return (
            there
            if self._host is None
            else self._device.upload(self._host.narrow(0, 0, count), there)
        )


class _Tables:
    """Block tables of a step's sequences, side by side: a copy with gaps isn't one copy, and on
    CUDA waits for the device. A row is written again only when its table has changed."""

    def __init__(self, device: Device, sizes: Sizes):
        self._buffer = _Buffer(device, sizes.sequences, sizes.blocks)
        self._width = 0
        self._shown: list[tuple[BlockTable, int]] = []

    @property
    def bytes(self) -> int:
        return self._buffer.bytes

    def fill(self, tables: Sequence[BlockTable], width: int) -> NDArray[np.int64]:
        """[sequences, width] of block numbers, then zeros."""
        rows = self._buffer.values[: len(tables) * width].reshape(len(tables), width)
        if width != self._width:
            self._width, self._shown = width, []
        now = [(table, table.changes) for table in tables]
        for row, (table, _) in enumerate(now):
            if row < len(self._shown) and self._shown[row] == now[row]:
                continue
            used = min(table.count, width)
            rows[row, :used] = table.blocks[:used]
            rows[row, used:] = 0
        self._shown = now
        return rows

    def put(self) -> torch.Tensor:
        rows = len(self._shown)
        return self._buffer.put(rows * self._width).view(rows, self._width)


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
        self._tables = _Tables(device, sizes)
        self._row_numbers = np.arange(sizes.sequences)

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
        states = [sequences[c.id] for c in chunks]
        decodes = sum(c.count == 1 for c in chunks)
        ends = [c.start + c.count for c in chunks]
        starts = [0, *accumulate(c.count for c in chunks)]
        sampled = [end - 1 for end, c in zip(starts[1:], chunks, strict=True) if c.samples]
        width = width or -(-max(ends) // self.sizes.block_tokens)
        tables = self._tables.fill([s.table for s in states], width)
        self._fill_decodes(chunks[:decodes], states, tables)
        for row in range(decodes, len(chunks)):
            self._fill_chunk(chunks[row], states[row], tables[row], starts[row])
        self._lengths.values[: len(chunks)] = ends
        self._rows.values[: len(sampled)] = sampled
        step = StepInput(
            token_ids=self._ids.put(starts[-1]),
            positions=self._positions.put(starts[-1]),
            slots=self._slots.put(starts[-1]),
            block_tables=self._tables.put(),
            context_lengths=self._lengths.put(len(chunks)),
            logit_rows=self._rows.put(len(sampled)),
            query_starts=tuple(starts),
            context_tokens=tuple(ends),
            decodes=decodes,
        )
        self._copied = self._device.mark()
        return step

    def _fill_decodes(
        self, chunks: Sequence[Chunk], states: Sequence[SequenceState], tables: NDArray[np.int64]
    ) -> None:
        """All chunks of one token at once."""
        count, size = len(chunks), self.sizes.block_tokens
        at = self._positions.values[:count]
        at[:] = [c.start for c in chunks]
        self._ids.values[:count] = [s.tokens[c.start] for s, c in zip(states, chunks, strict=False)]
        blocks = tables[self._row_numbers[:count], at // size]
        self._slots.values[:count] = blocks * size + at % size

    def _fill_chunk(
        self, chunk: Chunk, state: SequenceState, table: NDArray[np.int64], begin: int
    ) -> None:
        size, end = self.sizes.block_tokens, chunk.start + chunk.count
        place = slice(begin, begin + chunk.count)
        at = np.arange(chunk.start, end)
        self._positions.values[place] = at
        self._ids.values[place] = state.tokens[chunk.start : end]
        self._slots.values[place] = table[at // size] * size + at % size
