"""A rank's mirror of the sequences in its replica, kept by the messages of the leader.

The leader sends only what changes; every rank of the replica applies the same messages in the same
order and so knows the tokens, blocks and parameters of each sequence without being told again. A
preempted sequence stays: it only isn't in batches until it comes back, with another block table.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parallel.kernels.block_moves import BlockMoves
from parallel.kernels.sampling import Row
from parallel.requests.types import Sampling
from parallel.scheduling.scheduler import Batch

Joined = tuple[int, List[int], List[int], dict[str, Any]]
"""Id, prompt, block table, and the sampling parameters that aren't the default's."""

_DEFAULTS = {f.name: f.default for f in fields(Sampling)}


class BlockTable:
    """The blocks of a sequence in order; changed at its end alone."""

    def __init__(self, blocks: List[int]):
        self._array = np.array(blocks, dtype=np.int64)
        self.count = len(blocks)
        self.changes = 0

    @property
    def blocks(self) -> NDArray[np.int64]:
        """[count], valid until the next change."""
        return self._array[: self.count]

    def change(self, keep: int, added: List[int]) -> None:
        """Cut to `keep` blocks, then `added` follow."""
        needed = keep + len(added)
        self.changes += 1
        if needed > len(self._array):
            grown = np.empty(2 * needed, dtype=np.int64)
            grown[:keep] = self._array[:keep]
            self._array = grown
        self._array[keep:needed] = added
        self.count = needed


@dataclass
class SequenceState:
    tokens: list[int]
    prompt: int
    table: BlockTable
    sampling: Sampling

    @cached_property
    def row(self) -> Row:
        """What it is sampled with: sees the tokens that come."""
        return Row(self.sampling, self.tokens, self.prompt)


@dataclass(slots=True)
class Chunk:
    """`count` tokens of a sequence from `start` on; `samples` if the next one is wanted.
    Not frozen: one is made for each sequence in each step, in half the time."""

    id: int
    start: int
    count: int
    samples: bool


@dataclass(frozen=True)
class StepMessage:
    """One step, as it travels: `tokens` sampled since the last message, sequences that `left`
    and `joined`, how block `tables` change (id, blocks kept, blocks added), which blocks move
    before the step computes, and the chunks to compute (those of one token first)."""

    serial: int
    phase: str
    tokens: List[tuple[int, int]]
    left: List[int]
    joined: List[Joined]
    chunks: List[Chunk]
    tables: List[tuple[int, int, List[int]]] = ()
    moves: BlockMoves = field(default_factory=BlockMoves)

    @classmethod
    def of(
        cls, serial: int, batch: Batch, tokens: List[tuple[int, int]], left: List[int]
    ) -> StepMessage:
        joined = [
            (s.id, s.request.prompt, list(s.blocks), _unusual(s.request.sampling))
            for s in batch.joined
        ]
        chunks = [Chunk(w.sequence.id, w.start, w.count, w.samples) for w in batch.work]
        tables = [(c.id, c.keep, c.added) for c in batch.tables]
        moves = BlockMoves(batch.swapped_out, batch.copies, batch.swapped_in)
        return cls(serial, batch.phase, tokens, left, joined, chunks, tables, moves)

    def to_wire(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "op": "step",
            "serial": self.serial,
            "phase": self.phase,
            "chunks": [(c.id, c.start, c.count, c.samples) for c in self.chunks],
        }
        moves = self.moves
        rare = {
            "tokens": self.tokens,
            "left": self.left,
            "joined": self.joined,
            "tables": self.tables,
            "moves": (moves.out, moves.copies, moves.back) if moves else (),
        }
        body.update((name, value) for name, value in rare.items() if value)
        return body

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> StepMessage:
        return cls(
            body["serial"],
            body["phase"],
            body.get("tokens", ()),
            body.get("left", ()),
            body.get("joined", ()),
            [Chunk(*c) for c in body["chunks"]],
            body.get("tables", ()),
            BlockMoves(*body.get("moves", ())),
        )


class Sequences:
    """The sequences that this rank knows, by request id."""

    def __init__(self) -> None:
        self.states: dict[int, SequenceState] = {}

    def __getitem__(self, request_id: int) -> SequenceState:
        return self.states[request_id]

    def apply(self, message: StepMessage) -> None:
        for request_id, token in message.tokens:
            self.states[request_id].tokens.append(token)
        self.forget(message.left)
        for request_id, prompt, blocks, sampling in message.joined:
            self.states[request_id] = SequenceState(
                list(prompt), len(prompt), BlockTable(blocks), Sampling.from_wire(sampling)
            )
        for request_id, keep, added in message.tables:
            self.states[request_id].table.change(keep, added)

    def forget(self, left: List[int]) -> None:
        for request_id in left:
            del self.states[request_id]


def _unusual(sampling: Sampling) -> dict[str, Any]:
    """What `Sampling.from_wire` needs to make the same."""
    return {k: v for k, v in vars(sampling).items() if v != _DEFAULTS[k]}
