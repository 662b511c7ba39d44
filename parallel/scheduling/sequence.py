"""A request on its way through the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field

from parallel.requests.types import Request


@dataclass
class Sequence:
    """A request on its way: `tokens` known so far, of which `computed` are in the cache."""

    request: Request
    tokens: list[int]
    last: int
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    in_flight: bool = False
    cancelled: bool = False

    @property
    def id(self) -> int:
        return self.request.id

    @property
    def prompt(self) -> int:
        return len(self.request.prompt)

    @property
    def pending(self) -> int:
        """Known tokens that are not in the cache yet."""
        return len(self.tokens) - self.computed
