"""Connections between the ranks of a job: msgpack maps over authenticated sockets."""

from __future__ import annotations

import os
import secrets
import socket
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import msgpack

from parallel.collectives.mesh import Mesh


def send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(msgpack.packb(message))


def receive(connection: Connection) -> dict[str, Any]:
    """Raises `EOFError` when the peer has gone."""
    message: dict[str, Any] = msgpack.unpackb(
        connection.recv_bytes(), strict_map_key=False, use_list=True
    )
    return message


def without_delay(connection: Connection) -> Connection:
    """A step's message must not wait for the next one (Nagle's algorithm)."""
    with socket.socket(fileno=os.dup(connection.fileno())) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def open_star(mesh: Mesh, name: str, ranks: tuple[int, ...]) -> dict[int, Connection]:
    """Connects the first of `ranks` with each of the others. The first one gets a connection for
    each other rank, the others one to the first."""
    exchange, first = mesh.exchange, ranks[0]
    if len(ranks) == 1:
        return {}
    key = f"{name}/{first}"
    if mesh.rank != first:
        facts = exchange.get(key)
        made = Client(tuple(facts["address"]), authkey=bytes.fromhex(facts["authkey"]))
        send(made, {"rank": mesh.rank})
        return {first: without_delay(made)}
    authkey = secrets.token_bytes(16)
    with Listener((own_address(), 0), backlog=len(ranks), authkey=authkey) as listener:
        exchange.put(key, {"address": listener.address, "authkey": authkey.hex()})
        found = {}
        for _ in ranks[1:]:
            connection = without_delay(listener.accept())
            found[int(receive(connection)["rank"])] = connection
    return found


def own_address() -> str:
    """The address at which the other ranks reach this host: that of the way to the job's master,
    loopback when all ranks are on this host."""
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 9))
        return str(probe.getsockname()[0])
