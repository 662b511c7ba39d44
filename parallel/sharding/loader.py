"""Fills a rank's weights from safetensors files: its own slices, one tensor at a time."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from math import prod

import torch

from parallel.errors import CheckpointError
from parallel.layout.layout import Shard
from parallel.sharding.weights import Target

_PAGE = mmap.PAGESIZE


class ShardReader:
    """Maps checkpoint files and copies slices out of them.

    Pages are given back after each tensor, so that a rank holds its shard and at most one tensor
    of the file beside it. `bytes_read` counts the bytes of the slices themselves."""

    def __init__(self) -> None:
        self.bytes_read = 0
        self._maps: dict[str, mmap.mmap] = {}

    def fill(self, targets: Iterable[Target], advance: Callable[[int], None]) -> None:
        """Copies each target's values into its view; `advance` is told the bytes of each."""
        try:
            for target in targets:
                before = self.bytes_read
                self._fill(target)
                advance(self.bytes_read - before)
        finally:
            for mapped in self._maps.values():
                mapped.close()
            self._maps.clear()

    def _fill(self, target: Target) -> None:
        shard, view = target.shard, target.view
        stored = self._stored(shard)
        if shard.dim is None:
            self._copy(view, stored, shard)
        else:
            at = 0
            for piece in shard.pieces:
                into = view.narrow(shard.dim, at, piece.size)
                if piece.padding:
                    into.zero_()
                else:
                    part = stored.narrow(shard.dim, piece.begin, piece.size)
                    self._copy(into, part, shard)
                at += piece.size
        del stored
        self._release(shard)

    def _copy(self, into: torch.Tensor, part: torch.Tensor, shard: Shard) -> None:
        into.copy_(part)
        self.bytes_read += part.numel() * shard.parameter.source.precision.bytes

    def _stored(self, shard: Shard) -> torch.Tensor:
        """The logical parameter as a view of the mapped file: [out, in], unfused."""
        source = shard.parameter.source
        if source.place is None:
            raise CheckpointError(
                f"'{source.name}' has no weights on disk: the model directory holds a config alone"
            )
        whole = torch.frombuffer(
            self._map(source.place.file),
            dtype=getattr(torch, source.precision.torch),
            count=prod(source.shape),
            offset=source.place.start,
        ).view(source.shape)
        if source.transposed:
            whole = whole.t()
        return whole.narrow(0, source.offset, shard.parameter.shape[0])

    def _map(self, file: str) -> mmap.mmap:
        if file not in self._maps:
            with open(file, "rb") as handle:
                self._maps[file] = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[file]

    def _release(self, shard: Shard) -> None:
        place = shard.parameter.source.place
        assert place is not None
        begin = place.start // _PAGE * _PAGE
        self._maps[place.file].madvise(mmap.MADV_DONTNEED, begin, place.end - begin)
