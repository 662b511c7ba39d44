"""Runs a generation and answers with it, whole or as server-sent events.

A client that goes away ends the generation, so that its place is free for others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from parallel.requests.types import TokenEvent
from parallel.server.bodies import StreamOptions
from parallel.server.errors import ApiError, error_body
from parallel.server.generation import Generation, Update
from parallel.server.shapes import Answer, Json, Shape, usage

Result = TypeVar("Result")
CLIENT_GONE = 499
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def respond(
    request: Request,
    generation: Generation,
    shape: Shape,
    stream: StreamOptions | None,
) -> Response:
    """`stream` None answers whole. The status waits for the first tokens: until then an error of
    the engine is an error response."""
    generation.start()
    try:
        if stream is None:
            made = await _while_connected(request.receive, _whole(generation))
            generation.close()
            if made is None:
                return Response(status_code=CLIENT_GONE)
            choices = [shape.choice(i, answer) for i, answer in enumerate(made)]
            counts = usage(generation)
            return JSONResponse({**shape.whole_head, "choices": choices, "usage": counts})
        first = await _while_connected(request.receive, generation.updates())
        if first is None:
            generation.close()
            return Response(status_code=CLIENT_GONE)
        return EventStream(generation, shape, stream, first)
    except BaseException:
        generation.close()
        raise


async def _whole(generation: Generation) -> list[Answer]:
    sequences = generation.sequences
    texts = [""] * sequences
    tokens: list[list[TokenEvent]] = [[] for _ in range(sequences)]
    reasons = ["stop"] * sequences
    while updates := await generation.updates():
        for update in updates:
            texts[update.index] += update.text
            tokens[update.index].extend(update.tokens)
            reasons[update.index] = update.finish_reason or reasons[update.index]
    return [Answer(*parts) for parts in zip(texts, tokens, reasons, strict=True)]


class EventStream(Response):
    """Chunks as `data:` lines, usage when asked for, `[DONE]`; an error object when the engine
    fails in mid-stream."""

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        shape: Shape,
        options: StreamOptions,
        first: list[Update],
    ):
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._generation, self._shape, self._first = generation, shape, first
        self._usage_last = bool(options.include_usage)
        self._usage_always = bool(options.continuous_usage_stats) and self._usage_last
        self._head = shape.chunk_head

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await _while_connected(receive, self._send_all(send))
        finally:
            self._generation.close()

    async def _send_all(self, send: Send) -> None:
        headers, status = self.raw_headers, self.status_code
        await send({"type": "http.response.start", "status": status, "headers": headers})
        openings = [self._shape.opening(i) for i in range(self._generation.sequences)]
        body = b"".join(self._event([choice]) for choice in openings if choice is not None)
        updates = self._first
        try:
            while updates:
                body += b"".join(self._event([self._shape.delta(u)]) for u in updates)
                await send({"type": "http.response.body", "body": body, "more_body": True})
                body = b""
                updates = await self._generation.updates()
            if self._usage_last:
                body = _data({**self._head, "choices": [], "usage": usage(self._generation)})
        except ApiError as error:
            body = _data(error_body(error.status, str(error), code=error.code))
        body += b"data: [DONE]\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _event(self, choices: list[Json]) -> bytes:
        chunk = {**self._head, "choices": choices}
        if self._usage_last:
            chunk["usage"] = usage(self._generation) if self._usage_always else None
        return _data(chunk)


def _data(body: Json) -> bytes:
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """What `work` returns, or None when the client goes away first."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
