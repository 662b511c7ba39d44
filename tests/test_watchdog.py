"""Who is missing, and who died: named by the watchdog and by the lifeline."""

from __future__ import annotations

import time
from functools import partial
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from parallel.collectives import links
from parallel.collectives.communicator import Communicator, Current
from parallel.collectives.control import ControlChannel
from parallel.collectives.exchange import Exchange
from parallel.collectives.lifeline import Lifeline
from parallel.collectives.mesh import Mesh
from parallel.collectives.watchdog import Watchdog
from parallel.devices.cpu import CpuDevice
from parallel.errors import RankDied, RunError
from parallel.requests.wire import Channel, connect, listen
from tests.rank_pool import RankPool

CASES = "tests.collective_cases"


@pytest.mark.parametrize(
    ("world", "collectives", "native"),
    [(3, "gloo", False), (2, "shared_memory", False), (2, "shared_memory", True)],
)
def test_the_absent_rank_is_named(
    world: int, collectives: str, native: bool, pool: RankPool
) -> None:
    """With shared memory the main thread waits in native code all the while."""
    arguments = {"collectives": collectives, "native": native, "op": "all_reduce"}
    answers = pool.run(f"{CASES}:late", world, degrees=[world, 1, 1], **arguments)
    for rank in range(world - 1):
        (message,) = answers[rank]
        assert message.startswith(
            f"rank {rank}: all_reduce over tp of [4, 6] float32 (ffn, number 1) waited"
        )
        assert message.endswith(f"missing: rank {world - 1} (in no collective)")
    assert answers[-1] == []


@pytest.mark.parametrize("collectives", ["gloo", "auto"])
def test_a_receiver_names_its_source(collectives: str, pool: RankPool) -> None:
    arguments = {"collectives": collectives, "native": True, "op": "recv"}
    answers = pool.run(f"{CASES}:late", 2, degrees=[1, 2, 1], **arguments)
    (message,) = answers[1]
    assert message.startswith("rank 1: recv over pp of [4, 6] float32 (stage, number 1) waited")
    assert message.endswith("missing: rank 0 (in no collective)")


class Stuck:
    """A communicator of four ranks whose fifth collective never ends."""

    axis, ranks, size, sequence = "tp", (0, 1, 2, 3), 4, 5
    device = CpuDevice()

    def __init__(self) -> None:
        self.current = Current(
            5, "tp", "all_reduce", "ffn", torch.Size([2]), torch.float32, time.monotonic(), None
        )

    def waiting(self) -> Current:
        return self.current


def _said_by_watchdog(exchange: Exchange) -> str:
    said: list[str] = []
    spoken = Event()

    def expired(error: Exception) -> None:
        said.append(str(error))
        spoken.set()

    dog = Watchdog(0, [cast(Communicator, Stuck())], exchange, 0.0, expired)
    assert spoken.wait(60)
    dog.stop()
    return said[0]


def test_silent_and_unknown_ranks_are_told_apart_from_those_elsewhere() -> None:
    exchange = Exchange(HashStore(), 0, 4)
    exchange.put("beat/1", {"beat": 9, "reached": {"tp": 5}, "doing": "waiting too"})
    exchange.put("beat/2", {"beat": 9, "reached": {"tp": 4}, "doing": "in no collective"})
    assert _said_by_watchdog(exchange).endswith(
        "missing: rank 2 (in no collective; no sign of life), rank 3 (never heard of)"
    )


def test_a_store_that_is_gone_hides_the_names_alone() -> None:
    class Gone(Exchange):
        def put(self, key: str, value: Any) -> None:
            raise RuntimeError("connection reset")

        def find(self, key: str) -> Any | None:
            raise RuntimeError("connection reset")

    message = _said_by_watchdog(Gone(HashStore(), 0, 4))
    assert message.endswith("missing: unknown: the job's store doesn't answer")


def _pair() -> tuple[Channel, Channel]:
    listener = listen("127.0.0.1", b"key")
    made: list[Channel] = []
    thread = Thread(target=lambda: made.append(connect(listener.address, b"key")))
    thread.start()
    other = listener.accept()
    thread.join()
    listener.close()
    return made[0], other


class Lifelines:
    """Rank 0 and its two peers, all in this process."""

    def __init__(self) -> None:
        names = {0: "rank 0 (pid 7 on a)", 1: "rank 1 (pid 8 on a)", 2: "rank 2 (pid 9 on b)"}
        pairs = {1: _pair(), 2: _pair()}
        self.ends = {rank: theirs for rank, (_, theirs) in pairs.items()}
        self.said: dict[int, list[str]] = {0: [], 1: [], 2: []}
        self.lines = {
            0: Lifeline(0, {r: o for r, (o, _) in pairs.items()}, names, self.said[0].append)
        }
        self.lines[1] = Lifeline(1, {0: self.ends[1]}, names, self.said[1].append)

    def wait_for(self, rank: int) -> str:
        while not self.said[rank]:
            time.sleep(0.01)
        return self.said[rank][0]


def test_a_dead_rank_is_named_once_and_the_others_told() -> None:
    job = Lifelines()
    job.ends[2].close()
    assert job.wait_for(0) == "rank 2 (pid 9 on b) died; ending the job"
    assert job.wait_for(1) == ""
    job.lines[1].close()
    job.lines[0].close()
    assert job.said[0] == ["rank 2 (pid 9 on b) died; ending the job"]


def test_the_death_of_rank_0_is_told_by_the_others() -> None:
    job = Lifelines()
    for peer in job.lines[0]._peers.values():
        peer.close()
    assert job.wait_for(1) == "rank 1 ends: it lost rank 0 (pid 7 on a)"
    job.lines[1].close()
    job.ends[2].close()


def test_an_orderly_end_is_no_death(pool: RankPool) -> None:
    assert pool.run(f"{CASES}:goodbye", 3, degrees=[3, 1, 1]) == [[], [], []]


def test_a_rank_that_never_connects_is_named() -> None:
    mesh = SimpleNamespace(rank=0, exchange=Exchange(HashStore(), 0, 3))
    with pytest.raises(RunError, match=r"rank\(s\) 1, 2 didn't connect to rank 0"):
        links.open_star(cast(Mesh, mesh), "control", (0, 1, 2), timeout_seconds=0.2)


def test_a_closed_control_channel_names_the_rank() -> None:
    ours, theirs = _pair()
    leader, worker = ControlChannel(0, {1: ours}), ControlChannel(1, {0: theirs})
    leader.broadcast({"op": "ping"})
    assert worker.receive() == {"op": "ping"}
    worker.close()
    for ask in (leader.gather, partial(leader.reply_of, 1)):
        with pytest.raises(RankDied, match="rank 1 is gone"):
            ask()
    leader.close()
