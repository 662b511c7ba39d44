"""Requests that no server should accept, and the statuses that are right for each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from benchmarks.load.client import MODEL

_COMPLETIONS = "/v1/completions"
_CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class BadRequest:
    name: str
    body: bytes
    path: str = _COMPLETIONS
    method: str = "POST"
    expected: tuple[int, ...] = (400, 422)


def _with(name: str, expected: tuple[int, ...] = (400, 422), **fields: Any) -> BadRequest:
    body = {"model": MODEL, "prompt": [300, 301], "max_tokens": 4} | fields
    return BadRequest(name, json.dumps(body).encode(), expected=expected)


BAD_REQUESTS = (
    BadRequest("no body", b""),
    BadRequest("half a body", b'{"model": "bench", "prompt": [1'),
    BadRequest("not an object", b"[]"),
    BadRequest("not UTF-8", b'{"prompt": "\xff\xfe"}'),
    BadRequest("no prompt", json.dumps({"model": MODEL}).encode()),
    BadRequest("no such route", b"{}", path="/v1/nothing", expected=(404,)),
    BadRequest("wrong method", b"", method="GET", expected=(405,)),
    BadRequest("no messages", json.dumps({"model": MODEL, "messages": []}).encode(), path=_CHAT),
    BadRequest("no roles", json.dumps({"model": MODEL, "messages": [{}]}).encode(), path=_CHAT),
    _with("another model", expected=(404,), model="nobody's"),
    _with("empty prompt", prompt=[]),
    _with("empty text", prompt=""),
    _with("a prompt of objects", prompt=[{}]),
    _with("ids beyond the vocabulary", prompt=[2**31 - 1]),
    _with("negative ids", prompt=[-1]),
    _with("longer than the context", prompt=[300] * 100_000),
    _with("more tokens than the context", max_tokens=10**9),
    _with("no tokens", max_tokens=-1),
    _with("tokens as text", max_tokens="four"),
    _with("too cold", temperature=-1.0),
    _with("too hot", temperature=1e30),
    _with("no share", top_p=0.0),
    _with("n of none", n=0),
    _with("n of many", n=10_000),
    _with("stops without end", stop=["x"] * 1000),
    _with("stops of numbers", stop=[1]),
    _with("a grammar", guided_grammar="root ::= 'a'"),
    _with("a seed of text", seed="x"),
    _with("deep", prompt=[[[[[[1]]]]]]),
)
