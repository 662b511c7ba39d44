"""Who died: a connection from each rank to rank 0 that carries nothing until the end of the job.

When one closes without a goodbye, rank 0 names the rank and ends the job; when rank 0's end closes,
the others follow.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from threading import Thread

from parallel.collectives import links
from parallel.collectives.mesh import Mesh


def end_process(message: str) -> None:
    """Says why and leaves at once: other threads may hang in native code."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


class Lifeline:
    """`lost` is called with the message; the default ends this process."""

    def __init__(
        self,
        rank: int,
        peers: dict[int, Connection],
        names: dict[int, str],
        lost: Callable[[str], None],
    ):
        self._rank, self._peers, self._names, self._lost = rank, peers, names, lost
        self._closing = False
        self._thread = Thread(target=self._watch, daemon=True, name="lifeline")
        self._thread.start()

    @classmethod
    def open(cls, mesh: Mesh, lost: Callable[[str], None] = end_process) -> Lifeline:
        world = mesh.exchange.world_size
        name = f"rank {mesh.rank} (pid {os.getpid()} on {os.uname().nodename})"
        names = dict(enumerate(mesh.exchange.collect("names", name)))
        peers = links.open_star(mesh, "lifeline", tuple(range(world)))
        return cls(mesh.rank, peers, names, lost)

    def _watch(self) -> None:
        left = dict(self._peers)
        while left:
            for ready in wait(list(left.values())):
                rank = next(r for r, peer in left.items() if peer is ready)
                del left[rank]
                if not self._said_goodbye(rank) and not self._closing:
                    self._report(rank)

    def _said_goodbye(self, rank: int) -> bool:
        try:
            return bool(links.receive(self._peers[rank]).get("goodbye"))
        except (EOFError, OSError):
            return False

    def _report(self, rank: int) -> None:
        if self._rank == 0:
            self._lost(f"{self._names[rank]} died; ending the job")
        else:
            self._lost(f"rank {self._rank} ends: it lost {self._names[rank]}")

    def close(self) -> None:
        """Says goodbye, so that nobody takes the leave for a death."""
        self._closing = True
        for peer in self._peers.values():
            try:
                links.send(peer, {"goodbye": True})
            except OSError:
                continue
        self._thread.join(timeout=10)
        for peer in self._peers.values():
            peer.close()
