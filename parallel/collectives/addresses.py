"""At which address, and over which interface, other hosts reach this one."""

from __future__ import annotations

import ipaddress
import os
import platform
import socket
from contextlib import suppress

import psutil

LOOPBACK = "127.0.0.1"
_ELSEWHERE = "192.0.2.1"
"""An address that nobody has (RFC 5737): the way to it is the way out."""


def own_address() -> str:
    """The address at which the other ranks reach this host: that of the way to the job's master,
    loopback when all ranks are on this host."""
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        return LOOPBACK
    return _address_towards(os.environ.get("MASTER_ADDR", LOOPBACK))


def _address_towards(host: str) -> str:
    """Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])


def reached_at(host: str) -> str:
    """Where clients of other hosts find who listens at `host`: there, or if that is every address
    (0.0.0.0, ::) by this machine's name, where it means something, or by the address of the way
    out."""
    try:
        everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        everywhere = False
    if not everywhere:
        return host
    name = platform.node()
    with suppress(OSError):
        socket.getaddrinfo(name, None)
        return name
    with suppress(OSError):
        return _address_towards(_ELSEWHERE)
    return LOOPBACK


def own_interface() -> str | None:
    """The interface that has `own_address`."""
    address = own_address()
    for name, held in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in held):
            return str(name)
    return None


def choose_gloo_interface() -> None:
    """Gloo would take what the host's own name resolves to, often loopback, where hosts can't meet.
    An interface that was given stays."""
    found = own_interface()
    if found is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found)
