"""A request on its way through the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from parallel.requests.types import Request
from parallel.scheduling.prefix import digest


class Stage(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    LEFT = "left"


@dataclass(slots=True, eq=False)
class Sequence:
    """`tokens` are known so far; `computed` of them are in the cache, or will be once the batches
    are computed that were made so far. At most `last` tokens come to be known. `number` counts
    requests as they came.

    `blocks` are its table, of which ranks know the first `told` as they are (None: they don't know
    the sequence). Positions from `computed` to `writable` may be written to without asking.
    `promised` blocks more were looked for when it was admitted. `digests` are those of its full
    blocks, `entered` of them in the prefix cache. `host` holds what was swapped out."""

    request: Request
    last: int
    number: int
    prompt: int
    tokens: list[int]
    group: tuple[int, bytes] | None = None
    """Its group and the digest of its prompt: all of one kind have the same prompt."""
    computed: int = 0
    stage: Stage = Stage.WAITING
    awaited: bool = False
    """A batch in flight samples its next token."""
    blocks: list[int] = field(default_factory=list)
    told: int | None = None
    writable: int = 0
    promised: int = 0
    digests: list[bytes] = field(default_factory=list)
    entered: int = 0
    host: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    """Tokens of the prompt that weren't computed for it: they were in the cache."""

    @classmethod
    def of(cls, request: Request, last: int, number: int) -> Sequence:
        tokens = list(request.prompt)
        group = None if request.group is None else (request.group, digest(tokens))
        return cls(request, last, number, len(tokens), tokens, group)

    @property
    def id(self) -> int:
        return self.request.id

    @property
    def seniority(self) -> tuple[int, int]:
        """The least comes first."""
        return self.request.priority, self.number

    @property
    def pending(self) -> int:
        """Known tokens that no batch computes yet."""
        return len(self.tokens) - self.computed
