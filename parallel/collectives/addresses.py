"""At which address, and over which interface, other hosts reach this one."""

from __future__ import annotations

import os
import socket

import psutil

LOOPBACK = "127.0.0.1"


def own_address() -> str:
    """The address at which the other ranks reach this host: that of the way to the job's master,
    loopback when all ranks are on this host."""
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        return LOOPBACK
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ.get("MASTER_ADDR", LOOPBACK), 9))
        return str(probe.getsockname()[0])


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
