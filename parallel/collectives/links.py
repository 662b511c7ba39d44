"""Connections between the ranks of a job: a star from one rank to some others."""

from __future__ import annotations

import os
import secrets
import socket
from threading import Timer

from parallel.collectives.addresses import own_address
from parallel.collectives.mesh import Mesh
from parallel.errors import RunError
from parallel.requests.wire import Channel, PeerLost, connect, listen

CONNECT_SECONDS = 120.0


def open_star(
    mesh: Mesh, name: str, ranks: tuple[int, ...], timeout_seconds: float = CONNECT_SECONDS
) -> dict[int, Channel]:
    """Connects the first of `ranks` with each of the others. The first one gets a channel for
    each other rank, the others one to the first. Raises `RunError` naming who didn't come."""
    exchange, first = mesh.exchange, ranks[0]
    if len(ranks) == 1:
        return {}
    key = f"{name}/{first}"
    if mesh.rank != first:
        facts = exchange.get(key)
        made = connect(facts["address"], bytes.fromhex(facts["authkey"]), timeout_seconds)
        made.send({"rank": mesh.rank})
        return {first: _noticing_lost_hosts(made)}
    authkey = secrets.token_bytes(16)
    listener = listen(own_address(), authkey)
    found: dict[int, Channel] = {}
    patience = Timer(timeout_seconds, listener.close)
    patience.daemon = True
    patience.start()
    try:
        exchange.put(key, {"address": listener.address, "authkey": authkey.hex()})
        while len(found) < len(ranks) - 1:
            channel = _noticing_lost_hosts(listener.accept())
            found[int(channel.receive()["rank"])] = channel
    except PeerLost:
        missing = ", ".join(str(r) for r in ranks[1:] if r not in found)
        raise RunError(
            f"rank(s) {missing} didn't connect to rank {first} at {listener.address[0]} within "
            f"{timeout_seconds:.0f} s; see whether they started, and whether a firewall stands "
            "between the hosts"
        ) from None
    finally:
        patience.cancel()
        listener.close()
    return found


def _noticing_lost_hosts(channel: Channel) -> Channel:
    """A host that lost its power says nothing: ask it after 10 s of silence (tcp(7))."""
    with socket.socket(fileno=os.dup(channel.fileno())) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return channel
