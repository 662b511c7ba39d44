"""What one step has to do, in numbers: all that its time depends on beside layout and machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepWork:
    """`tokens` computed, `rows` of them sampled.

    `pairs` are query-key pairs over all sequences: a decode at context c has c, a prompt of n
    tokens n(n+1)/2. `cached` are tokens whose keys and values are read, once per sequence.
    `chunks` of prompts are among the tokens; the other sequences decode one token each."""

    tokens: int
    rows: int
    pairs: float
    cached: float
    chunks: int = 0

    @staticmethod
    def decode(sequences: int, contexts: float) -> StepWork:
        """`contexts` tokens over all `sequences`."""
        return StepWork(sequences, sequences, contexts, contexts)

    @staticmethod
    def prompt(tokens: int, before: int = 0) -> StepWork:
        """A chunk of one prompt that attends to `before` earlier tokens as well."""
        pairs = tokens * before + tokens * (tokens + 1) / 2
        return StepWork(tokens, 1, pairs, before + tokens, 1)

    @property
    def sequences(self) -> int:
        """Decodes and chunks. A chunk that doesn't end its prompt isn't among the rows."""
        return max(self.rows, self.chunks, 1)

    def part(self, count: int) -> StepWork:
        """One of `count` equal parts."""
        return StepWork(
            -(-self.tokens // count),
            -(-self.rows // count),
            self.pairs / count,
            self.cached / count,
            -(-self.chunks // count),
        )

    def __add__(self, other: StepWork) -> StepWork:
        return StepWork(
            self.tokens + other.tokens,
            self.rows + other.rows,
            self.pairs + other.pairs,
            self.cached + other.cached,
            self.chunks + other.chunks,
        )
