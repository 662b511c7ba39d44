"""Blocks in host memory for requests that gave way, as scheduling/tables.py gives them."""

from __future__ import annotations


class HostPool:
    """Of so many blocks. `swapped`: requests that gave way to it so far."""

    def __init__(self, blocks: int):
        self.swapped = 0
        self._free, self._read, self._moved = blocks, 0, 0
        self._held: dict[int, tuple[int, int]] = {}

    def leave(self, request: int, computed: int, blocks: int) -> None:
        """Keeps `computed` tokens of a request in `blocks` of the pool, if there is room."""
        if 0 < blocks <= self._free:
            self._free -= blocks
            self._moved += blocks
            self._held[request] = computed, blocks
            self.swapped += 1

    def back(self, request: int) -> int | None:
        """What a request had computed, if it was kept; it leaves the pool."""
        if request not in self._held:
            return None
        computed, blocks = self._held.pop(request)
        self._moved += blocks
        self._read += blocks
        return computed

    def pass_step(self) -> int:
        """Blocks that go out or back with the next step; what it reads here is free after it."""
        moved, self._moved = self._moved, 0
        self._free += self._read
        self._read = 0
        return moved
