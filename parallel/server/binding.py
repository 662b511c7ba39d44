"""The listening socket of the server, bound before anything slow begins."""

from __future__ import annotations

import errno
import socket
import time

from parallel.errors import ConfigError

_BACKLOG = 2048
_POLL_SECONDS = 0.1


def bind_port(host: str, port: int, patience_seconds: float = 0.0) -> socket.socket:
    """Port 0 takes a free one; one in use is waited for, as long as patience lasts. Raises
    `ConfigError` saying what is in the way."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port={port} is no port; give 0 (a free one) to 65535")
    if not host:
        raise ConfigError("host is empty; give 127.0.0.1, or 0.0.0.0 for every address")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            # On POSIX with SO_REUSEADDR: connections that linger don't keep the port.
            bound = socket.create_server((host, port), family=family, backlog=_BACKLOG)
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise ConfigError(_reason(host, port, error)) from None
        time.sleep(_POLL_SECONDS)
    # Connections inherit it; asyncio sets it only where the socket names its protocol. Without it
    # each small chunk waits for the client's delayed acknowledgement (40 ms).
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def _reason(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} is in use on {host}; stop what listens there, or give port=0 for a "
            "free one"
        )
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges; give a port of 1024 or more"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host={host} is no address of this machine; give 127.0.0.1, or 0.0.0.0 for all"
    if error.errno is not None and error.errno < 0:  # of the resolver, not of the system
        return f"host={host} can't be resolved; give an address of this machine, such as 127.0.0.1"
    return f"host={host} port={port} can't be bound: {error.strerror}"
