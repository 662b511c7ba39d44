"""Which blocks of the KV cache belong to whom. Numbers alone: no tensor is touched."""

from __future__ import annotations

from parallel.errors import RunError


class BlockManager:
    """`total` blocks of `block_tokens` tokens each on the device, `host_total` in host memory."""

    def __init__(
        self, total: int, block_tokens: int, host_total: int = 0, prefix_cache: bool = True
    ):
        self.total, self.block_tokens = total, block_tokens
        self.host_total, self.prefix_cache = host_total, prefix_cache
        self._free = list(range(total - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def whole(self) -> bool:
        """Nothing is held by anyone."""
        return self.free == self.total

    def needed(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def allocate(self, count: int) -> list[int]:
        """Raises `RunError` when there are fewer free blocks: callers ask `free` first."""
        if count > self.free:
            raise RunError(f"{count} cache blocks were asked for, {self.free} are free")
        return [self._free.pop() for _ in range(count)]

    def release(self, blocks: list[int]) -> None:
        self._free.extend(reversed(blocks))
