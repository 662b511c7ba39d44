"""What answers look like: /v1/chat/completions and /v1/completions, streamed or whole."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from parallel.requests.types import TokenEvent
from parallel.server.generation import Generation, Update
from parallel.server.logprobs import chat_logprobs, completion_logprobs
from parallel.text.tokenizer import Tokenizer

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A whole sequence."""

    text: str
    tokens: Sequence[TokenEvent]
    finish_reason: str


class Shape(Protocol):
    """`chunk_head` and `whole_head` are the fields around the choices."""

    @property
    def chunk_head(self) -> Json: ...

    @property
    def whole_head(self) -> Json: ...

    def opening(self, index: int) -> Json | None:
        """The choice that opens a sequence of a stream, if there is one."""

    def delta(self, update: Update) -> Json:
        """A choice of a stream."""

    def choice(self, index: int, answer: Answer) -> Json:
        """A whole choice."""


@dataclass(frozen=True)
class ChatShape:
    tokenizer: Tokenizer
    model: str
    created: int
    logprobs: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")

    @property
    def chunk_head(self) -> Json:
        return _head(self.id, "chat.completion.chunk", self.created, self.model)

    @property
    def whole_head(self) -> Json:
        return _head(self.id, "chat.completion", self.created, self.model)

    def opening(self, index: int) -> Json | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, update: Update) -> Json:
        return {
            "index": update.index,
            "delta": {"content": update.text} if update.text else {},
            "logprobs": self._logprobs(update.tokens),
            "finish_reason": update.finish_reason,
        }

    def choice(self, index: int, answer: Answer) -> Json:
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(answer.tokens),
            "finish_reason": answer.finish_reason,
        }

    def _logprobs(self, tokens: Sequence[TokenEvent]) -> Json | None:
        return chat_logprobs(self.tokenizer, tokens) if self.logprobs else None


@dataclass(frozen=True)
class CompletionShape:
    tokenizer: Tokenizer
    model: str
    created: int
    logprobs: bool
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    _offsets: dict[int, int] = field(default_factory=dict)

    @property
    def chunk_head(self) -> Json:
        return self.whole_head

    @property
    def whole_head(self) -> Json:
        return _head(self.id, "text_completion", self.created, self.model)

    def opening(self, index: int) -> Json | None:
        return None

    def delta(self, update: Update) -> Json:
        return {
            "index": update.index,
            "text": update.text,
            "logprobs": self._logprobs(update.index, update.tokens),
            "finish_reason": update.finish_reason,
        }

    def choice(self, index: int, answer: Answer) -> Json:
        return {
            "index": index,
            "text": answer.text,
            "logprobs": self._logprobs(index, answer.tokens),
            "finish_reason": answer.finish_reason,
        }

    def _logprobs(self, index: int, tokens: Sequence[TokenEvent]) -> Json | None:
        if not self.logprobs:
            return None
        offset = self._offsets.get(index, 0)
        body, self._offsets[index] = completion_logprobs(self.tokenizer, tokens, offset)
        return body


def usage(generation: Generation) -> Json:
    """As far as it has come."""
    prompt, completion = generation.prompt_tokens, generation.generated_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
    }


def _head(id_: str, kind: str, created: int, model: str) -> Json:
    return {"id": id_, "object": kind, "created": created, "model": model}
