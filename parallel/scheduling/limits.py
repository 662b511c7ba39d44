"""What a scheduler may do at once, and which requests it takes."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.errors import RequestError
from parallel.requests.types import Request
from parallel.scheduling.blocks import BlockManager


@dataclass(frozen=True)
class Limits:
    """`step_tokens` per batch, `requests` running at once, `batches` in flight, `queue` waiting
    for a place at most (None: any number)."""

    step_tokens: int
    requests: int
    context_tokens: int
    batches: int = 1
    queue: int | None = None

    @property
    def places(self) -> int:
        """Requests that run at once: each must find a token in one of the batches in flight."""
        return min(self.requests, self.batches * self.step_tokens)


def last_token(request: Request, limits: Limits, blocks: BlockManager) -> int:
    """How many tokens will be known of a request at most. Raises `RequestError` for what could
    never be served, even alone."""
    length, context = len(request.prompt), limits.context_tokens
    if length == 0:
        raise RequestError("the prompt is empty; give at least one token", param="prompt")
    if length >= context:
        raise RequestError(
            f"the prompt has {length} tokens; the context holds {context}, one generated "
            "token included: shorten the prompt",
            param="prompt",
            code="context_length_exceeded",
        )
    last = min(length + request.sampling.max_tokens, context)
    # The last token is sampled, but never computed.
    if blocks.needed(last - 1) > blocks.total:
        raise RequestError(
            f"{length} prompt and {last - length} new tokens don't fit the KV cache of "
            f"{blocks.total * blocks.block_tokens} tokens; ask for fewer tokens, or "
            "raise memory_gib",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return last
