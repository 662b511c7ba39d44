"""Which blocks of the KV cache are held, and how often. Numbers alone: no tensor is touched.

Every block of the device is free, idle (cached for a prefix, nobody holds it) or held. Idle blocks
count as free: they are taken, longest idle first, when no other is left.
"""

from __future__ import annotations

from collections.abc import Sequence

from parallel.errors import RunError
from parallel.scheduling.prefix import PrefixCache


class BlockManager:
    """`total` blocks of `block_tokens` tokens each on the device, `host_total` in host memory."""

    def __init__(
        self, total: int, block_tokens: int, host_total: int = 0, prefix_cache: bool = True
    ):
        self.total, self.block_tokens = total, block_tokens
        self.host_total, self.prefix_cache = host_total, prefix_cache
        self.evictions = 0
        """Cached blocks that were taken for other tokens."""
        self._free = list(range(total - 1, -1, -1))
        self._holders = [0] * total
        self._cache = PrefixCache()
        self._host_free = list(range(host_total - 1, -1, -1))

    @property
    def free(self) -> int:
        """Blocks that `allocate` can give."""
        return len(self._free) + self._cache.idle

    @property
    def idle(self) -> int:
        """Blocks among the free ones that hold a prefix."""
        return self._cache.idle

    @property
    def host_free(self) -> int:
        return len(self._host_free)

    @property
    def whole(self) -> bool:
        """Nothing is held by anyone."""
        return self.free == self.total and self.host_free == self.host_total

    def needed(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def allocate(self, count: int) -> list[int]:
        """Blocks with one holder. Raises `RunError` when fewer are free: callers ask `free`."""
        if count > self.free:
            raise RunError(f"{count} cache blocks were asked for, {self.free} are free")
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block = self._cache.evict()
            self.evictions += 1
        self._holders[block] = 1
        return block

    def share(self, blocks: Sequence[int]) -> None:
        """One more holder for each."""
        for block in blocks:
            if self._holders[block] == 0:
                self._cache.wake(block)
            self._holders[block] += 1

    def shared(self, block: int) -> bool:
        """More than one holds it: who would write to it must copy it first."""
        return self._holders[block] > 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder less for each. The last ones are evicted first: prefixes lose their ends."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0 and not self._cache.rest(block):
                self._free.append(block)

    def match(self, digests: Sequence[bytes]) -> list[int]:
        """Blocks of the longest beginning of a chain (`extend_chain`) that is cached."""
        return self._cache.match(digests) if self.prefix_cache else []

    def idle_among(self, blocks: Sequence[int]) -> int:
        return sum(self._holders[block] == 0 for block in blocks)

    def enter(self, block: int, digest: bytes) -> None:
        """A held block is full, and its tokens end the chain `digest`."""
        if self.prefix_cache:
            self._cache.enter(block, digest)

    def forget(self, block: int) -> None:
        """A held block is about to be written to: it doesn't stand for its tokens any more."""
        self._cache.forget(block)

    def allocate_host(self, count: int) -> list[int] | None:
        """None when there are fewer."""
        if count > self.host_free:
            return None
        return [self._host_free.pop() for _ in range(count)]

    def release_host(self, blocks: Sequence[int]) -> None:
        self._host_free.extend(reversed(blocks))
