"""From a request's body to what the engine is asked for."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from parallel.errors import RequestError
from parallel.requests.types import Sampling
from parallel.server.bodies import GenerationBody
from parallel.server.errors import ApiError
from parallel.server.generation import Job

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
MAX_SEQUENCES = 128
_INT32 = 2**31 - 1
_INT64 = 2**63 - 1


def check_model(body: GenerationBody, served: str) -> None:
    """Raises `ApiError` 404 for another model than the one served."""
    if body.model is not None and body.model != served:
        raise ApiError(
            404,
            f"that model is not served here; this server has '{served}'",
            param="model",
            code="model_not_found",
        )


def count_sequences(body: GenerationBody, prompts: int) -> int:
    """`n` of each prompt."""
    n = 1 if body.n is None else body.n
    if not 1 <= n <= MAX_SEQUENCES or n * prompts > MAX_SEQUENCES:
        raise RequestError(
            f"n={n} of {prompts} prompt(s) is out of range; a request may have 1 to "
            f"{MAX_SEQUENCES} sequences",
            param="n",
        )
    return n


def room_for(prompt_tokens: int, asked: int | None, name: str, room_tokens: int) -> int:
    """The number of tokens to generate: as asked for, or all that the context leaves. Raises
    `RequestError` when prompt and answer don't fit."""
    left = room_tokens - prompt_tokens
    if left < 1:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens; the context holds {room_tokens}, one "
            "generated token included: shorten the prompt",
            param="prompt",
            code="context_length_exceeded",
        )
    if asked is not None and asked > left:
        raise RequestError(
            f"the prompt has {prompt_tokens} tokens and {name}={asked}, together "
            f"{prompt_tokens + asked}; the context holds {room_tokens}: give {name} of at most "
            f"{left}, or shorten the prompt",
            param=name,
            code="context_length_exceeded",
        )
    return left if asked is None else asked


def make_jobs(
    body: GenerationBody,
    prompts: Sequence[tuple[Sequence[int], int]],
    logprobs: int | None,
    continues: bool,
) -> list[Job]:
    """`prompts` holds token ids and the tokens to generate; a job of `n` sequences for each."""
    n = count_sequences(body, len(prompts))
    priority = 0
    if body.priority is not None:
        priority = _ranged("priority", body.priority, -_INT32, _INT32)
    stops, seed = _stops(body.stop), _seed(body)
    given: dict[str, Any] = {
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "stop_token_ids": _token_ids(body.stop_token_ids),
        "ignore_eos": bool(body.ignore_eos),
        "logprobs": logprobs,
    }
    names = ("top_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    given |= {name: v for name in names if (v := getattr(body, name)) is not None}
    if body.top_k is not None and body.top_k != -1:
        given["top_k"] = _ranged("top_k", body.top_k, 0, _INT32)
    return [
        Job(
            prompt,
            tuple(Sampling(max_tokens=tokens, seed=(seed + i) % _INT64, **given) for i in range(n)),
            stops,
            continues,
            priority,
        )
        for prompt, tokens in prompts
    ]


def _seed(body: GenerationBody) -> int:
    return (
        secrets.randbits(31) if body.seed is None else _ranged("seed", body.seed, -_INT64, _INT64)
    )


def _ranged(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise RequestError(f"{name} is out of range; give {least} to {most}", param=name)
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    legal = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not legal or not all(
        isinstance(s, str) and 1 <= len(s) <= MAX_STOP_CHARACTERS for s in stops
    ):
        raise RequestError(
            f"'stop' must be a string or a list of up to {MAX_STOPS} strings, each of 1 to "
            f"{MAX_STOP_CHARACTERS} characters",
            param="stop",
        )
    return tuple(stops)


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_SEQUENCES or not is_ids(value, _INT32):
        raise RequestError(
            f"'stop_token_ids' must be a list of up to {MAX_SEQUENCES} token ids",
            param="stop_token_ids",
        )
    return tuple(value)


def is_ids(value: Sequence[Any], vocabulary: int) -> bool:
    return all(type(i) is int and 0 <= i < vocabulary for i in value)
