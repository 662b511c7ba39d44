"""Turns a step's chunks into the flattened tensors of the model, in preallocated buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

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
    """A host tensor and its place on the device; only the part in use is copied."""

    def __init__(self, device: Device, *shape: int):
        self.device = device
        self.host = device.host_buffer((prod(shape),), torch.int64)
        self.there = device.zeros((prod(shape),), torch.int64)

    @property
    def bytes(self) -> int:
        """On the device: on CPU the host's copy is there too."""
        where = self.there.device.type
        return sum(t.nbytes for t in (self.host, self.there) if t.device.type == where)

    def put(self, values: Sequence[int]) -> torch.Tensor:
        count = len(values)
        self.host.narrow(0, 0, count).copy_(torch.tensor(values, dtype=torch.int64))
        return self.device.upload(self.host.narrow(0, 0, count), self.there.narrow(0, 0, count))

    def put_rows(self, rows: Sequence[Sequence[int]], width: int) -> torch.Tensor:
        """Rows of `width`, filled up with zeros and side by side: a copy with gaps isn't one copy,
        and on CUDA waits for the device."""
        padded = [value for row in rows for value in (*row, *[0] * (width - len(row)))]
        return self.put(padded).view(len(rows), width)


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

    def build(self, chunks: Sequence[Chunk], sequences: Sequences) -> StepInput:
        # The last step's copies may still be under way: its host memory is not free before.
        self._copied()
        size = self.sizes.block_tokens
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts, contexts, tables, rows = [0], [], [], []
        for c in chunks:
            state, end = sequences[c.id], c.start + c.count
            ids += state.tokens[c.start : end]
            positions += range(c.start, end)
            blocks = state.blocks
            slots += [blocks[p // size] * size + p % size for p in range(c.start, end)]
            starts.append(len(ids))
            contexts.append(end)
            tables.append(blocks[: -(-end // size)])
            if c.samples:
                rows.append(len(ids) - 1)
        step = StepInput(
            token_ids=self._ids.put(ids),
            positions=self._positions.put(positions),
            slots=self._slots.put(slots),
            block_tables=self._tables.put_rows(tables, max(len(t) for t in tables)),
            context_lengths=self._lengths.put(contexts),
            logit_rows=self._rows.put(rows),
            query_starts=tuple(starts),
            context_tokens=tuple(contexts),
            decodes=sum(1 for c in chunks if c.count == 1),
        )
        self._copied = self._device.mark()
        return step
