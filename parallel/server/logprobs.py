"""Log-probabilities in the two shapes that OpenAI's API has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from parallel.requests.types import TokenEvent
from parallel.text.tokenizer import Tokenizer

LEAST = -9999.0
"""Stands for minus infinity, which JSON can't say."""


def chat_logprobs(tokenizer: Tokenizer, tokens: Iterable[TokenEvent]) -> dict[str, Any]:
    content = [
        {
            **_chat_token(tokenizer, event.token, event.logprob),
            "top_logprobs": [_chat_token(tokenizer, t, lp) for t, lp in event.top],
        }
        for event in tokens
    ]
    return {"content": content, "refusal": None}


def _chat_token(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    text = raw.decode(errors="replace")
    return {"token": text, "logprob": _finite(logprob), "bytes": list(raw)}


def completion_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[TokenEvent], offset: int
) -> tuple[dict[str, Any], int]:
    """The shape of /v1/completions, and the text offset after these tokens."""
    names, offsets = [], []
    for event in tokens:
        names.append(_name(tokenizer, event.token))
        offsets.append(offset)
        offset += len(tokenizer.token_text(event.token))
    tops = [
        {
            _name(tokenizer, token): _finite(logprob)
            for token, logprob in (*event.top, (event.token, event.logprob))
        }
        for event in tokens
    ]
    body = {
        "tokens": names,
        "token_logprobs": [_finite(event.logprob) for event in tokens],
        "top_logprobs": tops,
        "text_offset": offsets,
    }
    return body, offset


def _name(tokenizer: Tokenizer, token: int) -> str:
    """Tokens that are no whole characters must differ as keys: `bytes:\\xe2\\x82`."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in raw)


def _finite(logprob: float | None) -> float:
    if logprob is None:
        return LEAST
    return logprob if logprob > LEAST else LEAST
