"""POST /v1/completions"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from parallel.errors import RequestError
from parallel.server.bodies import CompletionBody, StreamOptions
from parallel.server.generation import Generation
from parallel.server.respond import respond
from parallel.server.sampling import (
    MAX_SEQUENCES,
    check_model,
    count_sequences,
    is_ids,
    make_jobs,
    room_for,
)
from parallel.server.service import Service
from parallel.server.shapes import CompletionShape
from parallel.text.tokenizer import Tokenizer

DEFAULT_TOKENS = 16


def completion_routes(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions", response_model=None)
    async def complete(body: CompletionBody, request: Request) -> Response:
        service.check_ready()
        check_model(body, service.model)
        body.check_supported()
        served = service.served
        prompts = await service.in_thread(
            lambda: read_prompts(body.prompt, service.tokenizer, served.vocabulary)
        )
        count_sequences(body, len(prompts))
        sized = [
            (prompt, _tokens(len(prompt), body.max_tokens, served.room_tokens))
            for prompt in prompts
        ]
        jobs = make_jobs(body, sized, body.logprobs, continues=True)
        service.check_ready()
        shape = CompletionShape(
            service.tokenizer, service.model, int(time.time()), body.logprobs is not None
        )
        stream = (body.stream_options or StreamOptions()) if body.stream else None
        generation = Generation(service, jobs)
        return await respond(request, generation, shape, stream)

    return routes


def _tokens(prompt_tokens: int, asked: int | None, room_tokens: int) -> int:
    left = room_for(prompt_tokens, asked, "max_tokens", room_tokens)
    return min(DEFAULT_TOKENS, left) if asked is None else asked


def read_prompts(prompt: Any, tokenizer: Tokenizer, vocabulary: int) -> list[list[int]]:
    """A string, a list of strings, token ids, or a list of those. Raises `RequestError`."""
    given = prompt if isinstance(prompt, list) else [prompt]
    if given and all(type(p) is int for p in given):
        given = [given]
    if not 1 <= len(given) <= MAX_SEQUENCES:
        raise RequestError(
            f"'prompt' holds {len(given)} prompts; give 1 to {MAX_SEQUENCES}", param="prompt"
        )
    found = [_read_prompt(p, tokenizer, vocabulary) for p in given]
    if not all(found):
        raise RequestError("a prompt is empty; give at least one token", param="prompt")
    return found


def _read_prompt(prompt: Any, tokenizer: Tokenizer, vocabulary: int) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if isinstance(prompt, list) and is_ids(prompt, vocabulary):
        return prompt
    raise RequestError(
        "'prompt' must be a string, a list of strings, a list of token ids or a list of such "
        f"lists; token ids are 0 to {vocabulary - 1}",
        param="prompt",
    )
