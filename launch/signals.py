"""Signals that reach a rank even while its main thread is in native code.

Python runs handlers between bytecodes of the main thread; the wake-up descriptor is written by the
C handler at once, and a thread waits on it.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from threading import Thread


def on_termination(act: Callable[[signal.Signals], None]) -> None:
    """Calls `act` in a thread of its own, once, at the first SIGTERM or SIGINT."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    watched = (signal.SIGTERM, signal.SIGINT)
    for number in watched:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(theirs.detach(), warn_on_full_buffer=False)

    def wait() -> None:
        # Both ends stay open: torchrun and a scheduler send the same signal, one after the other.
        acted = False
        while True:
            number = ours.recv(1)[0]
            if number in watched and not acted:
                acted = True
                act(signal.Signals(number))

    Thread(target=wait, daemon=True, name="signals").start()
