"""A rank's mirror of the sequences in its replica, kept by the messages of the leader.

The leader sends only what changes; every rank of the replica applies the same messages in the same
order and so knows the tokens, blocks and parameters of each sequence without being told again.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Any

from parallel.kernels.sampling import Row
from parallel.requests.types import Sampling
from parallel.scheduling.scheduler import Batch


@dataclass
class SequenceState:
    tokens: list[int]
    prompt: int
    blocks: list[int]
    sampling: Sampling

    @property
    def row(self) -> Row:
        return Row(self.sampling, self.tokens, self.prompt)


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of a sequence from `start` on; `samples` if the next one is wanted."""

    id: int
    start: int
    count: int
    samples: bool


@dataclass(frozen=True)
class StepMessage:
    """One step, as it travels: `tokens` sampled since the last message, sequences that `left`
    and `joined`, and the chunks to compute (those of one token first)."""

    serial: int
    phase: str
    tokens: List[tuple[int, int]]
    left: List[int]
    joined: List[tuple[int, List[int], List[int], dict[str, Any]]]
    chunks: List[Chunk]

    @classmethod
    def of(
        cls, serial: int, batch: Batch, tokens: List[tuple[int, int]], left: List[int]
    ) -> StepMessage:
        joined = [
            (s.id, s.request.prompt, s.blocks, s.request.sampling.to_wire()) for s in batch.joined
        ]
        chunks = [Chunk(w.sequence.id, w.start, w.count, w.samples) for w in batch.work]
        return cls(serial, batch.phase, tokens, left, joined, chunks)

    def to_wire(self) -> dict[str, Any]:
        return {
            "op": "step",
            "serial": self.serial,
            "phase": self.phase,
            "tokens": self.tokens,
            "left": self.left,
            "joined": self.joined,
            "chunks": [(c.id, c.start, c.count, c.samples) for c in self.chunks],
        }

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> StepMessage:
        return cls(
            body["serial"],
            body["phase"],
            [(i, t) for i, t in body["tokens"]],
            body["left"],
            [(i, p, b, s) for i, p, b, s in body["joined"]],
            [Chunk(*c) for c in body["chunks"]],
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
        for request_id in message.left:
            del self.states[request_id]
        for request_id, prompt, blocks, sampling in message.joined:
            self.states[request_id] = SequenceState(
                list(prompt), len(prompt), list(blocks), Sampling.from_wire(sampling)
            )
