"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from parallel.errors import RequestError, TesseraError

MAX_MESSAGE_CHARACTERS = 1000
_TYPES = {401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable"}
_MESSAGES = {
    404: "no such path; see /v1/models, /v1/chat/completions, /v1/completions",
    405: "this path doesn't take that method; see the Allow header",
}


class ApiError(TesseraError):
    """An answer other than success. `retry_seconds` becomes Retry-After."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_seconds: int | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.retry_seconds = retry_seconds


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    text = message[:MAX_MESSAGE_CHARACTERS]
    return {"error": {"message": text, "type": kind, "param": param, "code": code}}


def error_response(error: Exception, headers: Mapping[str, str] | None = None) -> JSONResponse:
    sent = dict(headers or {})
    if isinstance(error, ApiError):
        if error.retry_seconds is not None:
            sent["Retry-After"] = str(error.retry_seconds)
        body = error_body(error.status, str(error), error.param, error.code)
        return JSONResponse(body, error.status, sent)
    if isinstance(error, RequestError):
        return JSONResponse(error_body(400, str(error), error.param, error.code), 400, sent)
    return JSONResponse(error_body(500, "internal error; the server's log says more"), 500, sent)


def install_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _answer)
    app.add_exception_handler(RequestError, _answer)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _answer)


async def _answer(_: Request, error: Exception) -> JSONResponse:
    return error_response(error)


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    status = error.status_code
    message = _MESSAGES.get(status, str(error.detail))
    return JSONResponse(error_body(status, message), status, error.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Says which field and what was expected, never what was given."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        place = found[0]["loc"][-1]
        message = f"the body is not JSON: {found[0]['ctx']['error']} at character {place}"
        return JSONResponse(error_body(400, message), 400)
    if len(found[0]["loc"]) == 1:
        message = "the body must be a JSON object, sent with Content-Type: application/json"
        return JSONResponse(error_body(400, message), 400)
    field = found[0]["loc"][1]
    same = [entry for entry in found if entry["loc"][1] == field][:3]
    place = _place(found[0]["loc"][1:])
    reasons = dict.fromkeys(str(entry["msg"]) for entry in same)
    message = f"{place}: {' or '.join(reasons)}"
    return JSONResponse(error_body(400, message, param=str(field)), 400)


def _place(loc: tuple[str | int, ...]) -> str:
    """`("messages", 3, "role") → "messages[3].role"`; names of types in a union are left out."""
    text = str(loc[0])
    for part in loc[1:]:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part in ("role", "content", "include_usage", "continuous_usage_stats"):
            text += f".{part}"
    return text
