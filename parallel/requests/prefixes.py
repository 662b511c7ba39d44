"""Where prompts begin alike: digests of their blocks, and which a replica was sent lately.

What comes of it is a guess at what a replica has cached, made without asking: being wrong
costs time alone.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence


def block_digests(tokens: Sequence[int], block_tokens: int) -> list[int]:
    """One for each full block, of all tokens up to its end; within this process alone."""
    raw = array("q", tokens).tobytes()
    step = 8 * block_tokens
    digests, last = [], 0
    for end in range(step, len(raw) + 1, step):
        last = hash((last, raw[end - step : end]))
        digests.append(last)
    return digests


class PrefixMemory:
    """The last `most` blocks that one replica was sent. What came later goes last, of one prompt
    the end goes first: of a prompt whose block is known, all blocks before it are."""

    def __init__(self, most: int):
        self._most = most
        self._known: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def matched(self, digests: Sequence[int]) -> int:
        """How many blocks of a prompt, from its start, are known."""
        return bisect_left(digests, True, key=lambda d: d not in self._known)

    def note(self, digests: Sequence[int]) -> None:
        for digest in reversed(digests[: self._most]):
            self._known[digest] = None
            self._known.move_to_end(digest)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
