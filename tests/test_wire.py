"""Channels between processes: framing, lost peers, strangers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from parallel.errors import RunError
from parallel.requests.types import TokenEvent
from parallel.requests.wire import (
    Channel,
    PeerLost,
    WireError,
    connect,
    event_from_wire,
    event_to_wire,
    listen,
)

KEY = b"secret"


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """Both ends of one channel."""
    listener = listen("127.0.0.1", KEY)
    accepted: list[Channel] = []
    thread = threading.Thread(target=lambda: accepted.append(listener.accept()))
    thread.start()
    near = connect(listener.address, KEY)
    thread.join()
    listener.close()
    yield near, accepted[0]
    near.close()
    accepted[0].close()


def test_messages_arrive_whole_and_in_order(ends: tuple[Channel, Channel]) -> None:
    near, far = ends
    message = {"a": [1, -2.5, None, True], "b": {"c": "é"}, "raw": b"\x00\xff", "inf": float("inf")}
    near.send(message)
    near.send({"n": list(range(100_000))})
    assert far.poll(10)
    assert far.receive() == message
    assert far.receive()["n"][-1] == 99_999
    assert not far.poll(0)
    assert near.fileno() >= 0


def test_threads_may_send_at_once(ends: tuple[Channel, Channel]) -> None:
    near, far = ends

    def send(who: int) -> None:
        for i in range(50):
            near.send({"who": who, "i": i, "pad": "x" * 20_000})

    threads = [threading.Thread(target=send, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for _ in range(150):
        message = far.receive()
        found[message["who"]].append(message["i"])
    for thread in threads:
        thread.join()
    assert all(numbers == list(range(50)) for numbers in found.values())


def test_a_lost_peer_is_an_error(ends: tuple[Channel, Channel]) -> None:
    near, far = ends
    far.close()
    assert near.poll(10)
    with pytest.raises(PeerLost, match="has ended"):
        near.receive()
    with pytest.raises(PeerLost):
        far.receive()
    with pytest.raises(PeerLost):
        far.send({})
    far.close()


def test_close_wakes_whoever_waits(ends: tuple[Channel, Channel]) -> None:
    near, _ = ends
    woken: list[type[BaseException]] = []

    def wait() -> None:
        try:
            near.receive()
        except PeerLost as error:
            woken.append(type(error))

    thread = threading.Thread(target=wait)
    thread.start()
    near.close()
    thread.join(20)
    assert woken == [PeerLost]


@pytest.mark.parametrize("raw", [b"\xc1", b"\x93\x01", b"\x01", b"\x81\x01\x02", b"[]"])
def test_what_is_no_message_is_refused(ends: tuple[Channel, Channel], raw: bytes) -> None:
    near, far = ends
    connection = near._connection
    assert isinstance(connection, Connection)
    connection.send_bytes(raw)
    with pytest.raises(WireError):
        far.receive()


def test_strangers_are_dropped_and_friends_served() -> None:
    listener = listen("127.0.0.1", KEY)
    accepted: list[Channel] = []
    thread = threading.Thread(target=lambda: accepted.append(listener.accept()))
    thread.start()
    socket.create_connection(listener.address).close()
    with pytest.raises(RunError, match="another key"):
        connect(listener.address, b"wrong")
    near = connect(listener.address, KEY)
    thread.join()
    near.send({"hello": 1})
    assert accepted[0].receive() == {"hello": 1}
    for end in (near, accepted[0]):
        end.close()
    listener.close()
    with pytest.raises(PeerLost, match="closed"):
        listener.accept()
    with pytest.raises(PeerLost, match="nobody answers"):
        connect(listener.address, KEY)


@pytest.mark.parametrize("words", [b"\x00\x00\x00\x05hello", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_another_program_behind_the_address_is_told_apart(words: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with server.accept()[0] as stream:
                stream.sendall(words)

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(RunError, match=r"another program|has ended"):
            connect(server.getsockname(), KEY)
        thread.join()


@pytest.mark.parametrize(
    "event",
    [
        TokenEvent(1, 2),
        TokenEvent(3, 4, -0.5, ((4, -0.5), (5, -1.0)), "length"),
        TokenEvent(5, -1, finish_reason="error", message="why", code="queue_full"),
        TokenEvent(6, 7, cached_tokens=16),
    ],
)
def test_events_survive_the_wire(ends: tuple[Channel, Channel], event: TokenEvent) -> None:
    near, far = ends
    near.send({"events": [event_to_wire(event)]})
    assert event_from_wire(far.receive()["events"][0]) == event
