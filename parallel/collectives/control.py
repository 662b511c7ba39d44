"""The control channel of a replica: its leader sends each step, idle ranks block here.

Never inside a collective: a rank without work neither burns a core nor runs into a time-out.
"""

from __future__ import annotations

import os
import time
from typing import Any

from parallel.collectives import links
from parallel.collectives.mesh import Mesh
from parallel.errors import RankDied
from parallel.requests.wire import Channel, PeerLost

Message = dict[str, Any]

_EAGER_SECONDS = 0.001
"""The next step mostly follows within it: who sleeps meanwhile is woken late, and the others wait
for it in their first collective."""


class ControlChannel:
    """`peers`: for the leader all other ranks of the replica, for them the leader alone."""

    def __init__(self, rank: int, peers: dict[int, Channel]):
        self.rank, self.peers = rank, peers

    @classmethod
    def open(cls, mesh: Mesh, replica: tuple[int, ...]) -> ControlChannel:
        return cls(mesh.rank, links.open_star(mesh, "control", replica))

    def broadcast(self, message: Message) -> None:
        """Leader: to every other rank of the replica."""
        for rank, peer in self.peers.items():
            try:
                peer.send(message)
            except PeerLost:
                raise RankDied(f"rank {rank} is gone: its control channel is closed") from None

    def receive(self) -> Message:
        """Others: the leader's next message, however long it takes; at first without sleeping, but
        for those who want the core."""
        (leader, peer), *_ = self.peers.items()
        until = time.monotonic() + _EAGER_SECONDS
        while not self.has_reply(leader, 0.0) and time.monotonic() < until:
            os.sched_yield()
        return self._read(leader, peer)

    def reply(self, message: Message) -> None:
        """Others: to the leader."""
        self.broadcast(message)

    def reply_of(self, rank: int) -> Message:
        """Leader: the next reply of a rank, however long it takes."""
        return self._read(rank, self.peers[rank])

    def has_reply(self, rank: int, timeout_seconds: float) -> bool:
        """Whether a message of a rank is there, or is within so many seconds."""
        try:
            return self.peers[rank].poll(timeout_seconds)
        except PeerLost:
            return True  # and the read says who is gone

    def gather(self) -> list[Message]:
        """Leader: one reply of each rank, in the order of ranks."""
        return [self._read(rank, self.peers[rank]) for rank in sorted(self.peers)]

    def _read(self, rank: int, peer: Channel) -> Message:
        try:
            return peer.receive()
        except PeerLost:
            raise RankDied(f"rank {rank} is gone: its control channel is closed") from None

    def close(self) -> None:
        for peer in self.peers.values():
            peer.close()
