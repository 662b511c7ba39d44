"""Who died: a connection from each rank to rank 0 that carries nothing until the end of the job.

When one closes without a goodbye, rank 0 names the rank, tells the others and ends the job; they
follow in silence, or name rank 0 when it was the one that died.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing.connection import wait
from threading import Thread

from parallel.collectives import links
from parallel.collectives.mesh import Mesh
from parallel.requests.wire import Channel, PeerLost


def end_process(message: str) -> None:
    """Says why, if there is something to say, and leaves at once: other threads may hang in native
    code."""
    if message:
        print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


class Lifeline:
    """`lost` is called with the message, empty where rank 0 has told it; the default ends this
    process."""

    def __init__(
        self,
        rank: int,
        peers: dict[int, Channel],
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
        left = {peer.fileno(): rank for rank, peer in self._peers.items()}
        while left:
            for ready in wait(list(left)):
                assert isinstance(ready, int)
                rank = left.pop(ready)
                word = self._last_word(rank)
                if self._closing or word == "goodbye":
                    continue
                if word == "ended":
                    self._lost("")
                elif self._rank == 0:
                    for other in left.values():
                        _say(self._peers[other], "ended")
                    self._lost(f"{self._names[rank]} died; ending the job")
                else:
                    self._lost(f"rank {self._rank} ends: it lost {self._names[rank]}")

    def _last_word(self, rank: int) -> str:
        try:
            return str(self._peers[rank].receive().get("word"))
        except PeerLost:
            return ""

    def close(self) -> None:
        """Says goodbye, so that nobody takes the leave for a death."""
        self._closing = True
        for peer in self._peers.values():
            _say(peer, "goodbye")
        self._thread.join(timeout=10)
        for peer in self._peers.values():
            peer.close()


def _say(peer: Channel, word: str) -> None:
    try:
        peer.send({"word": word})
    except PeerLost:  # it can't be told any more
        return
