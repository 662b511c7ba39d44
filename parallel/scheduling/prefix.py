"""Which blocks hold which tokens, so that requests that begin alike share them.

A full block is known by the digest of its tokens and of the digest before it, so a digest stands
for all tokens from the first on. Digests are strong: nobody can make two prompts collide and so
read what another's prompt left.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_BYTES = 16


def extend_chain(
    digests: list[bytes], tokens: Sequence[int], block_tokens: int, blocks: int
) -> None:
    """Digests of the first `blocks` full blocks of `tokens`; those that are there are kept."""
    for index in range(len(digests), blocks):
        start = index * block_tokens
        parent = digests[-1] if digests else b""
        digests.append(digest(tokens[start : start + block_tokens], parent))


def digest(tokens: Sequence[int], parent: bytes = b"") -> bytes:
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=DIGEST_BYTES).digest()


class PrefixCache:
    """Blocks by digest. Those that nobody holds are idle, in the order in which they became so."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def idle(self) -> int:
        return len(self._idle)

    def match(self, digests: Sequence[bytes]) -> list[int]:
        """The blocks of the longest beginning that is here."""
        found = []
        for digest in digests:
            block = self._blocks.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def enter(self, block: int, digest: bytes) -> None:
        """Unless the same tokens, or others in this block, are here already."""
        if digest not in self._blocks and block not in self._digests:
            self._blocks[digest] = block
            self._digests[block] = digest

    def rest(self, block: int) -> bool:
        """Nobody holds it any more: keeps it if its tokens are known, and says so."""
        if block not in self._digests:
            return False
        self._idle[block] = None
        return True

    def wake(self, block: int) -> None:
        """Somebody holds it again."""
        self._idle.pop(block, None)

    def evict(self) -> int:
        """The block that has been idle longest; its tokens are forgotten."""
        block, _ = self._idle.popitem(last=False)
        self.forget(block)
        return block

    def forget(self, block: int) -> None:
        """It doesn't stand for its tokens any more."""
        digest = self._digests.pop(block, None)
        if digest is not None:
            del self._blocks[digest]
