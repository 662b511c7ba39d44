"""POST /v1/chat/completions"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from parallel.errors import RequestError
from parallel.server.bodies import ChatBody, StreamOptions
from parallel.server.generation import Generation
from parallel.server.respond import respond
from parallel.server.sampling import check_model, make_jobs, room_for
from parallel.server.service import Service
from parallel.server.shapes import ChatShape

_FIELDS = {"role", "content", "name"}


def chat_routes(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatBody, request: Request) -> Response:
        service.check_ready()
        check_model(body, service.model)
        body.check_supported()
        logprobs = _logprobs(body)
        prompt = await service.in_thread(lambda: _prompt(service, body))
        name, asked = "max_completion_tokens", body.max_completion_tokens
        if asked is None:
            name, asked = "max_tokens", body.max_tokens
        tokens = room_for(len(prompt), asked, name, service.served.room_tokens)
        jobs = make_jobs(body, [(prompt, tokens)], logprobs, continues=False)
        service.check_ready()
        shape = ChatShape(service.tokenizer, service.model, int(time.time()), logprobs is not None)
        stream = (body.stream_options or StreamOptions()) if body.stream else None
        generation = Generation(service, jobs)
        return await respond(request, generation, shape, stream)

    return routes


def _prompt(service: Service, body: ChatBody) -> list[int]:
    if service.template is None:
        raise RequestError(
            "this model has no chat template; send a whole prompt to /v1/completions",
            param="messages",
            code="unsupported",
        )
    messages: list[dict[str, Any]] = [
        m.model_dump(include=_FIELDS, exclude_unset=True) for m in body.messages
    ]
    text = service.template.render(messages, body.chat_template_kwargs)
    return service.tokenizer.encode(text, add_special_tokens=False)


def _logprobs(body: ChatBody) -> int | None:
    if not body.logprobs:
        if body.top_logprobs:
            raise RequestError(
                "'top_logprobs' needs 'logprobs': true; give both or neither", param="top_logprobs"
            )
        return None
    return body.top_logprobs or 0
