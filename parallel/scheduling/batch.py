"""What a step computes and how block tables change for it: what ranks are told of scheduling."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.scheduling.sequence import Sequence

Pairs = tuple[tuple[int, int], ...]


@dataclass(slots=True, eq=False)
class Work:
    """`count` tokens of a sequence from `start` on; `samples` if the next token is wanted. Not
    frozen: one is made for each sequence in each step, in half the time."""

    sequence: Sequence
    start: int
    count: int
    samples: bool


@dataclass(frozen=True)
class TableChange:
    """The block table of sequence `id` is cut to its first `keep` blocks, then `added` follow."""

    id: int
    keep: int
    added: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """One-token chunks first. `joined` are sequences that no rank has seen yet; part of their
    prompt may be in the cache already.

    Before the step computes: `tables` change, then blocks move, in this order: `swapped_out`
    (device block, host block), `copies` (device block, device block), `swapped_in` (device block,
    host block)."""

    work: tuple[Work, ...]
    joined: tuple[Sequence, ...]
    tables: tuple[TableChange, ...] = ()
    copies: Pairs = ()
    swapped_out: Pairs = ()
    swapped_in: Pairs = ()

    @property
    def phase(self) -> str:
        """Tokens that are computed again, after a preemption, count as prompt."""
        prompt = any(w.count > 1 or w.start < w.sequence.prompt for w in self.work)
        return "prefill" if prompt else "decode"

    @property
    def tokens(self) -> int:
        return sum(w.count for w in self.work)
