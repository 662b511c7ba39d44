"""Messages between processes of one job: msgpack maps over authenticated TCP connections.

Framing and the mutual challenge by key are those of `multiprocessing.connection`, without pickle.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from struct import pack
from typing import Any

import msgpack

from parallel.errors import RunError
from parallel.requests.types import TokenEvent
from parallel.units import MIB, format_bytes

MAX_MESSAGE_BYTES = 256 * MIB
HANDSHAKE_SECONDS = 10

Address = tuple[str, int]
Message = dict[str, Any]


class PeerLost(RunError, EOFError):
    """The other end of a channel is gone, or this end was closed."""


class WireError(RunError):
    """The other end sent something that isn't a message."""


class Channel:
    """Both directions of one connection. Any thread may send; one thread at a time receives."""

    def __init__(self, stream: socket.socket, peer: Address):
        self.peer = peer
        self._socket = stream
        self._connection = Connection(os.dup(stream.fileno()))
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        self._arrivals = select.poll()
        self._arrivals.register(self._connection.fileno(), select.POLLIN)

    def send(self, message: Message) -> None:
        """Raises `PeerLost`; blocks while the peer doesn't read and the buffers are full."""
        raw = msgpack.packb(message, use_bin_type=True)
        if len(raw) > MAX_MESSAGE_BYTES:
            raise WireError(
                f"a message of {format_bytes(len(raw))} is over the limit of "
                f"{format_bytes(MAX_MESSAGE_BYTES)}"
            )
        with self._sending:
            try:
                self._connection.send_bytes(raw)
            except OSError as error:
                raise self._lost() from error

    def receive(self) -> Message:
        """Waits for the next message. Raises `PeerLost` at the end of the connection."""
        with self._receiving:
            try:
                raw = self._connection.recv_bytes(MAX_MESSAGE_BYTES)
            except (OSError, EOFError) as error:
                raise self._lost() from error
        return _decode(raw)

    def poll(self, timeout: float | None = 0.0) -> bool:
        """True when `receive` wouldn't block (a lost peer included). None waits without limit."""
        with self._receiving:
            if self._connection.closed:
                raise self._lost()
            return bool(self._arrivals.poll(None if timeout is None else 1e3 * timeout))

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        """Wakes whoever waits in `receive` or `poll`. Closing again does nothing."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # not connected any more, or closed: nobody is left waiting
            self._socket.close()
        with self._sending, self._receiving:
            self._socket.close()
            self._connection.close()

    def _lost(self) -> PeerLost:
        host, port = self.peer
        return PeerLost(f"the connection with {host}:{port} has ended")


class Listener:
    """A listening socket whose `address` others `connect` to with the same key."""

    def __init__(self, host: str, authkey: bytes, port: int = 0):
        self._authkey = authkey
        self._socket = socket.create_server((host, port), family=socket.AF_INET, backlog=256)
        name: Address = self._socket.getsockname()
        self.address = (host, name[1])

    def accept(self) -> Channel:
        """Waits for the next peer that knows the key; strangers are dropped.
        Raises `PeerLost` once closed."""
        while True:
            try:
                stream, peer = self._socket.accept()
            except OSError as error:
                raise PeerLost("the listener was closed") from error
            try:
                return _handshake(stream, peer, self._authkey, accepting=True)
            except (PeerLost, AuthenticationError):
                continue

    def close(self) -> None:
        """Wakes whoever waits in `accept`."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # closed already
            return
        self._socket.close()


def listen(host: str, authkey: bytes, port: int = 0) -> Listener:
    """Binds `host`; port 0 takes a free one (`Listener.address` says which)."""
    return Listener(host, authkey, port)


def connect(address: Sequence[Any], authkey: bytes, timeout_seconds: float = 60.0) -> Channel:
    """Raises `PeerLost` when nobody listens there, `RunError` when the key is another."""
    host, port = str(address[0]), int(address[1])
    try:
        stream = socket.create_connection((host, port), timeout=timeout_seconds)
    except OSError as error:
        raise PeerLost(f"nobody answers at {host}:{port}: {error.strerror or error}") from error
    stream.settimeout(None)
    try:
        return _handshake(stream, (host, port), authkey, accepting=False)
    except AuthenticationError:
        raise RunError(
            f"{host}:{port} is another program, or was started with another key"
        ) from None


def _handshake(stream: socket.socket, peer: Any, authkey: bytes, *, accepting: bool) -> Channel:
    """Each side proves that it knows the key, within `HANDSHAKE_SECONDS`."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _limit_reads(stream, HANDSHAKE_SECONDS)
    channel = Channel(stream, (str(peer[0]), int(peer[1])))
    steps = (deliver_challenge, answer_challenge)
    try:
        for step in steps if accepting else reversed(steps):
            step(channel._connection, authkey)
    except (OSError, EOFError) as error:
        channel.close()
        raise channel._lost() from error
    except (AuthenticationError, AssertionError) as error:  # Python 3.11 asserts the first words
        channel.close()
        raise AuthenticationError(str(error)) from None
    _limit_reads(stream, 0)
    return channel


def _limit_reads(stream: socket.socket, seconds: int) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, pack("ll", seconds, 0))


def _decode(raw: bytes) -> Message:
    try:
        message = msgpack.unpackb(raw, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"a message can't be read: {error}") from error
    if not isinstance(message, dict):
        raise WireError(f"a message is a {type(message).__name__}, not a map")
    return message


def event_to_wire(event: TokenEvent) -> list[Any]:
    """`[request_id, token, logprob, [[token, logprob], …], finish_reason, message,
    cached_tokens, code]`"""
    return list(event)


def event_from_wire(row: Sequence[Any]) -> TokenEvent:
    """Raises `WireError` for what `event_to_wire` didn't make."""
    try:
        request_id, token, logprob, top, reason, message, cached, code = row
        alternatives = tuple((t, lp) for t, lp in top) if top else ()
    except (TypeError, ValueError) as error:
        raise WireError(f"a token event can't be read: {error}") from None
    return TokenEvent(request_id, token, logprob, alternatives, reason, message, cached, code)
