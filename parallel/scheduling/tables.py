"""The block tables of sequences: started, grown, copied on write, swapped and given back.

What ranks must do for it is collected until the next batch carries it. Every rank executes
batches in the order in which they were made, so what an earlier batch computes may be read by a
later one, and what it used may be written to again, while it is still in flight.
"""

from __future__ import annotations

from parallel.scheduling.batch import Pairs, TableChange, Work
from parallel.scheduling.blocks import BlockManager
from parallel.scheduling.prefix import extend_chain
from parallel.scheduling.sequence import Sequence


class BlockTables:
    """`promised` blocks are still to be given to running sequences for tokens that are known."""

    def __init__(self, blocks: BlockManager):
        self.blocks = blocks
        self.promised = 0
        self.copied = 0
        self._copies: list[tuple[int, int]] = []
        self._out: list[tuple[int, int]] = []
        self._back: list[tuple[int, int]] = []
        self._emptied: list[int] = []

    # ------------------------------------------------------------------ starting

    def cached(self, s: Sequence) -> list[int]:
        """Blocks of the prefix cache that `s` can begin with."""
        if not self.blocks.prefix_cache:
            return []
        size = self.blocks.block_tokens
        full = (s.computed if s.host else len(s.tokens)) // size
        extend_chain(s.digests, s.tokens, size, full)
        return self.blocks.match(s.digests[:full])

    def donated(self, s: Sequence, donor: Sequence) -> list[int]:
        """Blocks of a sequence with the same prompt that `s` can begin with: all but the last
        token, the last block perhaps in part."""
        return donor.blocks[: self.blocks.needed(s.prompt - 1)]

    def taken(self, s: Sequence, begin: list[int]) -> int:
        """Free blocks that all known tokens of `s` take if it begins with `begin`."""
        missing = max(0, self.blocks.needed(len(s.tokens)) - len(begin))
        return missing + self.blocks.idle_among(begin)

    def start(self, s: Sequence, begin: list[int]) -> None:
        """Gives `s` the blocks to begin with, and those back that were swapped out."""
        blocks = self.blocks
        blocks.share(begin)
        s.blocks, s.told = list(begin), s.told and 0
        if s.host:
            missing = blocks.allocate(len(s.host) - len(begin))
            self._back += zip(missing, s.host[len(begin) :], strict=True)
            self._emptied += s.host
            s.blocks += missing
            s.host = []
        else:
            # The last known token is always computed: its logits are needed.
            s.computed = min(len(begin) * blocks.block_tokens, len(s.tokens) - 1)
        s.writable, s.entered = 0, min(len(begin), s.computed // blocks.block_tokens)
        s.promised = max(0, blocks.needed(len(s.tokens)) - len(s.blocks))
        self.promised += s.promised

    def lend(self, donor: Sequence) -> None:
        """Another shares its blocks: it asks again before it writes."""
        donor.writable = 0

    # ------------------------------------------------------------------ growing

    def grow(self, s: Sequence, end: int) -> bool:
        """Makes positions from `computed` to `end` writable, if the blocks are there."""
        blocks = self.blocks
        at = s.computed // blocks.block_tokens
        copied = at < len(s.blocks) and blocks.shared(s.blocks[at])
        more = max(0, blocks.needed(end) - len(s.blocks))
        if copied + more > blocks.free:
            return False
        if copied:
            self._copy(s, at)
        elif at < len(s.blocks):
            blocks.forget(s.blocks[at])
        if more:
            s.blocks += blocks.allocate(more)
            kept = min(more, s.promised)
            s.promised -= kept
            self.promised -= kept
        s.writable = len(s.blocks) * blocks.block_tokens
        return True

    def _copy(self, s: Sequence, at: int) -> None:
        old, (new,) = s.blocks[at], self.blocks.allocate(1)
        self._copies.append((old, new))
        self.copied += 1
        self.blocks.release([old])
        s.blocks[at] = new
        s.told = s.told and min(s.told, at)

    # ------------------------------------------------------------------ giving back

    def release(self, s: Sequence) -> None:
        """All its blocks; it would have to be computed again."""
        self.blocks.release(s.blocks)
        self.promised -= s.promised
        s.blocks, s.promised, s.computed = [], 0, 0
        if s.host:
            gone = set(s.host)
            self._out = [pair for pair in self._out if pair[1] not in gone]
            self.blocks.release_host(s.host)
            s.host = []

    def swap_out(self, s: Sequence) -> bool:
        """Moves what is computed to the host, if there is room; else nothing happens."""
        used = self.blocks.needed(s.computed)
        host = self.blocks.allocate_host(used) if used else None
        if host is None:
            return False
        self._out += zip(s.blocks[:used], host, strict=True)
        computed = s.computed
        self.release(s)
        s.computed, s.host = computed, host
        return True

    # ------------------------------------------------------------------ telling

    def tell(self, work: list[Work]) -> tuple[tuple[Sequence, ...], tuple[TableChange, ...]]:
        """Sequences that ranks see first in this batch, and tables that changed otherwise. What
        the batch computes may be shared by the batches after it."""
        joined, changed = [], []
        size = self.blocks.block_tokens
        for w in work:
            s = w.sequence
            count = len(s.blocks)
            if s.told != count:
                if s.told is None:
                    joined.append(s)
                    s.cached_tokens = w.start
                else:
                    changed.append(TableChange(s.id, s.told, tuple(s.blocks[s.told :])))
                s.told = count
            if s.computed >= (s.entered + 1) * size:
                self._enter(s, s.computed // size)
        return tuple(joined), tuple(changed)

    def _enter(self, s: Sequence, full: int) -> None:
        if self.blocks.prefix_cache:
            extend_chain(s.digests, s.tokens, self.blocks.block_tokens, full)
            for block, digest in zip(
                s.blocks[s.entered : full], s.digests[s.entered : full], strict=True
            ):
                self.blocks.enter(block, digest)
        s.entered = full

    def moves(self) -> tuple[Pairs, Pairs, Pairs]:
        """Swapped out, copied and swapped in since the last batch. Host blocks that were read
        are free from the next batch on: this one's swap-outs come before."""
        found = tuple(self._out), tuple(self._copies), tuple(self._back)
        self._out, self._copies, self._back = [], [], []
        self.blocks.release_host(self._emptied)
        self._emptied = []
        return found
