"""What stands before every route: the API key and the limit on bodies."""

from __future__ import annotations

import hmac

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parallel.server.errors import ApiError, error_response
from parallel.units import MIB, format_bytes

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
_DISCARDED_BYTES = 64 * MIB


class ApiKeyGuard:
    """401 unless `Authorization: Bearer <key>` holds the key; probes and metrics stay open."""

    def __init__(self, app: ASGIApp, api_key: str):
        self._app = app
        self._expected = b"Bearer " + api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._knows(scope):
            await self._app(scope, receive, send)
            return
        refusal = ApiError(
            401, "give the server's API key as 'Authorization: Bearer …'", code="invalid_api_key"
        )
        await error_response(refusal, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = _header(scope, b"authorization")
        scheme, _, key = given.partition(b" ")
        return hmac.compare_digest(scheme.capitalize() + b" " + key.strip(), self._expected)


class BodyLimit:
    """413 for bodies over `max_bytes`, announced or in chunks. The rest of such a body is read and
    dropped (up to a limit), so that clients which send before they read see the answer."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) > self._max_bytes:
            if not _header(scope, b"expect"):
                await _discard(receive)
            refusal = ApiError(413, self._message())
            await error_response(refusal, {"Connection": "close"})(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._max_bytes:
                    if message.get("more_body", False):
                        await _discard(receive)
                    raise HTTPException(413, self._message(), {"Connection": "close"})
            return message

        await self._app(scope, counted, send)

    def _message(self) -> str:
        return f"the body is over the limit of {format_bytes(self._max_bytes)}; send less at once"


async def _discard(receive: Receive) -> None:
    dropped = 0
    while dropped < _DISCARDED_BYTES:
        message = await receive()
        dropped += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")
