"""What one step has to do, in numbers: all that its time depends on beside layout and machine."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.instrument.clock import Began, Count, Shape


@dataclass(frozen=True)
class StepWork:
    """`tokens` computed for `sequences`, `rows` of them sampled.

    `pairs` are query-key pairs over all sequences: a decode at context c has c, a prompt of n
    tokens n(n+1)/2. `cached` are tokens whose keys and values are read, once per sequence.
    `chunks` of prompts are among the sequences; the others decode one token each."""

    tokens: int
    sequences: int
    rows: int
    pairs: float
    cached: float
    chunks: int = 0

    @staticmethod
    def decode(sequences: int, contexts: float) -> StepWork:
        """`contexts` tokens over all `sequences`."""
        return StepWork(sequences, sequences, sequences, contexts, contexts)

    @staticmethod
    def prompt(tokens: int, before: int = 0, last: bool = True) -> StepWork:
        """A chunk of one prompt that attends to `before` earlier tokens as well; the `last` one
        gives the first token."""
        pairs = tokens * before + tokens * (tokens + 1) / 2
        return StepWork(tokens, 1, int(last), pairs, before + tokens, 1)

    def part(self, count: int) -> StepWork:
        """One of `count` equal parts."""
        return StepWork(
            -(-self.tokens // count),
            -(-self.sequences // count),
            -(-self.rows // count),
            self.pairs / count,
            self.cached / count,
            -(-self.chunks // count),
        )

    def fullest(self, count: int, most_tokens: int) -> StepWork:
        """The one of `count` batches that has most of the prompts: a chunk isn't shared by them
        unless it is longer than a batch may be. Attention is shared out by tokens."""
        decodes = self.sequences - self.chunks
        chunks, alone = -(-self.chunks // count), -(-decodes // count)
        prompts = round((self.tokens - decodes) * chunks / self.chunks)
        tokens = min(most_tokens, prompts + alone)
        share = tokens / self.tokens
        sequences = min(chunks + alone, tokens)
        rows = min(self.rows, sequences)
        return StepWork(tokens, sequences, rows, share * self.pairs, share * self.cached, chunks)

    def __add__(self, other: StepWork) -> StepWork:
        return StepWork(
            self.tokens + other.tokens,
            self.sequences + other.sequences,
            self.rows + other.rows,
            self.pairs + other.pairs,
            self.cached + other.cached,
            self.chunks + other.chunks,
        )


def mean_work(shape: Shape, count: Count) -> StepWork:
    """What a step of a shape had to do in the mean."""
    return StepWork(
        shape.tokens,
        shape.sequences,
        shape.rows,
        count.pairs / count.steps,
        count.cached / count.steps,
        shape.chunks,
    )


def work_of(step: Began) -> StepWork:
    """What one step had to do."""
    shape, contexts = step.shape, step.contexts
    return StepWork(
        shape.tokens, shape.sequences, shape.rows, contexts.pairs, contexts.cached, shape.chunks
    )
