"""Server-sent events over HTTP/1.1, read with next to no work of the client's own: on two cores it
takes from the server what it needs itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

_DONE = "[DONE]"


class HttpError(Exception):
    """An answer that isn't 200, or a connection that ended early."""

    def __init__(self, status: int, body: str):
        super().__init__(f"HTTP {status}: {body[:300]}")
        self.status, self.body = status, body


class EventParser:
    """Bytes in pieces of any size → the `data:` of each event; comments and other fields aside."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[str]:
        lines = (self._rest + piece).split(b"\n")
        self._rest = lines.pop()
        found = (line.rstrip(b"\r") for line in lines)
        return [line[5:].strip().decode() for line in found if line.startswith(b"data:")]


@dataclass(frozen=True)
class Address:
    host: str
    port: int


async def post_stream(address: Address, path: str, body: Any) -> AsyncGenerator[Any]:
    """The JSON of each event until `[DONE]`. Raises `HttpError`; closing the iterator early closes
    the connection, which is how a client goes away."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(request_bytes(address, "POST", path, json.dumps(body).encode()))
        await writer.drain()
        status, chunked = await _read_head(reader)
        if status != 200:
            raise HttpError(status, (await _read_rest(reader, chunked)).decode(errors="replace"))
        parser = EventParser()
        async for piece in _pieces(reader, chunked):
            for data in parser.feed(piece):
                if data == _DONE:
                    return
                event = json.loads(data)
                if "error" in event:
                    raise HttpError(status, data)
                yield event
        raise HttpError(status, "the stream ended without [DONE]")
    finally:
        writer.close()


async def request(address: Address, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Status and body of one request of its own connection."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(request_bytes(address, method, path, body))
        await writer.drain()
        status, chunked = await _read_head(reader)
        return status, await _read_rest(reader, chunked)
    finally:
        writer.close()


def request_bytes(address: Address, method: str, path: str, body: bytes) -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """The status, and whether the body comes in chunks."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    except asyncio.IncompleteReadError:
        raise HttpError(0, "the connection ended before an answer") from None
    return int(head.split(" ", 2)[1]), "transfer-encoding: chunked" in head


async def _pieces(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    while not chunked:
        piece = await reader.read(65536)
        if not piece:
            return
        yield piece
    while True:
        try:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            piece = await reader.readexactly(size + 2)
        except asyncio.IncompleteReadError:
            raise HttpError(0, "the connection ended in mid-stream") from None
        if size == 0:
            return
        yield piece[:-2]


async def _read_rest(reader: asyncio.StreamReader, chunked: bool) -> bytes:
    return b"".join([piece async for piece in _pieces(reader, chunked)])
