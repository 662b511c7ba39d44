"""Collectives between real processes, counted against closed forms, and how a backend is chosen."""

from __future__ import annotations

import ipaddress
import os
import platform
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from parallel.collectives.addresses import (
    choose_gloo_interface,
    own_address,
    own_interface,
    reached_at,
)
from parallel.collectives.choice import (
    NATIVE_SEGMENT_BYTES,
    WORKSPACE_BYTES,
    RankFacts,
    choose_all_reduce,
    group_mark,
    missing_instructions,
)
from parallel.collectives.mesh import Mesh, MeshOptions
from parallel.devices.cpu import CpuDevice
from parallel.errors import ConfigError, RunError
from parallel.instrument.ledger import Ledger
from parallel.layout.degrees import Degrees
from parallel.planner.memory import CHANNEL_BYTES
from tests.rank_pool import RankPool

CASES = "tests.collective_cases"
HERE = RankFacts("host-a", range(8), 8, 1 << 30)
NATIVE = replace(HERE, native=True)


@pytest.fixture(autouse=True)
def own_interface_of_each_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever joins a job chooses gloo's interface for its whole process."""
    # Set, so that what was there before comes back in the end.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")


@pytest.mark.parametrize(
    ("world", "collectives", "native", "backend"),
    [
        (2, "gloo", False, "gloo"),
        (3, "gloo", False, "gloo"),
        (4, "gloo", False, "gloo"),
        (2, "auto", False, "shared_memory"),
        (2, "auto", True, "shared_memory"),
    ],
)
def test_sums_and_gathers(
    world: int, collectives: str, native: bool, backend: str, pool: RankPool
) -> None:
    arguments = {"degrees": [world, 1, 1], "collectives": collectives, "native": native}
    answers = pool.run(f"{CASES}:reduce_and_gather", world, **arguments)
    for answer in answers:
        assert answer["backend"] == backend
        if backend == "shared_memory":
            assert answer["buffer_bytes"] == (NATIVE_SEGMENT_BYTES if native else WORKSPACE_BYTES)
        assert all(answer["sums"]) and answer["gathered"]
        assert answer["segments"] == []
        rows = {(r["op"], r["layer"]): r for r in answer["rows"]}
        reduced = rows["all_reduce", "test"]
        shapes = (1, 21, 8192, 165, 716800)
        sizes = [n * b for b in (4, 2, 2) for n in shapes] + [24 * 4, 8]
        assert reduced["calls"] == len(sizes)
        assert reduced["bytes"] == sum(2 * (world - 1) * s // world for s in sizes)
        widest = max([3, 1, 2, 5][:world])
        assert rows["all_gather", "logits"]["bytes"] == (world - 1) * 2 * widest * 4
        assert reduced["seconds"] > 0


@pytest.mark.parametrize(
    ("stages", "native", "backend", "buffer_bytes"),
    [(3, False, "gloo", 0), (2, True, "shared_memory", CHANNEL_BYTES)],
)
def test_a_pipeline_passes_batches_in_order(
    stages: int, native: bool, backend: str, buffer_bytes: int | None, pool: RankPool
) -> None:
    answers = pool.run(f"{CASES}:pass_along", stages, degrees=[1, stages, 1], native=native)
    assert {(a["backend"], a["buffer_bytes"]) for a in answers} == {(backend, buffer_bytes)}
    assert answers[-1]["seen"] == [sum(10**n for n in range(1, stages + 1)) + b for b in range(6)]
    rows = {(r["op"], r["layer"]): r for r in answers[0]["rows"]}
    assert (rows["send", "stage"]["calls"], rows["send", "stage"]["bytes"]) == (6, 6 * 60)
    rows = {(r["op"], r["layer"]): r for r in answers[1]["rows"]}
    assert (rows["recv", "stage"]["calls"], rows["recv", "stage"]["bytes"]) == (6, 0)


def test_control_channel_reaches_every_rank(pool: RankPool) -> None:
    answers = pool.run(f"{CASES}:control", 3, degrees=[3, 1, 1])
    assert answers[0] == [{"rank": r, "got": [[1, 2]]} for r in (1, 2)]


def test_shared_memory_leaves_the_environment_alone(pool: RankPool) -> None:
    assert pool.run(f"{CASES}:environment_kept", 2, degrees=[2, 1, 1]) == [True, True]


def test_a_failed_build_falls_back_to_gloo_and_says_so(pool: RankPool, tmp_path: Path) -> None:
    answers = pool.run(f"{CASES}:failed_build", 2, degrees=[2, 1, 1], cache=str(tmp_path))
    for answer in answers:
        assert answer["backend"] == "gloo" and answer["sum"] == 3.0
        assert (
            "building DeepSpeed's shared-memory all-reduce failed (the log is " in answer["reason"]
        )
    assert [p.read_text() != "" for p in tmp_path.glob("extensions/*/build.log")] == [True]


@pytest.mark.parametrize(
    ("group", "world", "words"),
    [
        ([HERE, replace(HERE, host="host-b")], None, "2 hosts"),
        ([HERE, HERE], [HERE] * 9, "9 ranks share 8 cores"),
        ([replace(HERE, quota_cores=1)] * 2, None, "2 ranks share 1 cores"),
        ([replace(HERE, cores=[3])] * 2, None, "2 ranks share 1 cores"),
        ([replace(HERE, shm_bytes=64 << 20)] * 2, None, "/dev/shm has 64.00 MiB free"),
        ([replace(HERE, shm_bytes=2 * WORKSPACE_BYTES)] * 2, None, "132.01 MiB are needed"),
        ([HERE, replace(NATIVE, lacks="ninja is not on PATH")], None, "ninja"),
        ([replace(NATIVE, shm_bytes=3 << 20)] * 2, None, "4.00 MiB are needed"),
        ([NATIVE, NATIVE], [NATIVE] * 9, "9 ranks share 8 cores"),
        ([HERE, replace(HERE, serves=group_mark("ab", 0, 2))], None, "used its one shared-memory"),
        ([replace(HERE, serves=group_mark("ab", i, 3)) for i in (0, 1)], None, "used its one"),
    ],
)
def test_where_shared_memory_is_not_safe(
    group: list[RankFacts], world: list[RankFacts] | None, words: str
) -> None:
    backend, reason = choose_all_reduce("auto", "tp", group, world or group)
    assert backend == "gloo" and words in reason
    with pytest.raises(ConfigError, match="collectives=auto"):
        choose_all_reduce("shared_memory", "tp", group, world or group)


@pytest.mark.parametrize(
    "group",
    [
        [HERE] * 8,
        [replace(HERE, cores=[i]) for i in range(2)],
        [replace(HERE, shm_bytes=2 * (WORKSPACE_BYTES + 4096))] * 2,
        [replace(HERE, shm_bytes=0, serves=group_mark("ab", i, 2)) for i in range(2)],
        [replace(NATIVE, lacks="no deepspeed", shm_bytes=4 << 20)] * 2,
    ],
    ids=["a core each", "pinned apart", "just enough room", "the same group again", "native"],
)
def test_where_shared_memory_is_safe(group: list[RankFacts]) -> None:
    assert choose_all_reduce("auto", "tp", group, group)[0] == "shared_memory"
    assert choose_all_reduce("gloo", "tp", group, group) == ("gloo", "asked for")


@pytest.mark.parametrize(
    ("axis", "group", "backend", "words"),
    [
        ("pp", [NATIVE] * 2, "shared_memory", "on this host"),
        ("pp", [replace(NATIVE, shm_bytes=12 << 20)] * 2, "shared_memory", "on this host"),
        ("pp", [replace(NATIVE, shm_bytes=11 << 20)] * 2, "gloo", "12.00 MiB are needed"),
        ("pp", [HERE, NATIVE], "gloo", "without the native kernels"),
        ("pp", [NATIVE, replace(NATIVE, host="host-b")], "gloo", "2 hosts"),
        ("dp", [NATIVE] * 2, "gloo", "replicas share no tensor"),
    ],
)
def test_stages_share_memory_by_the_same_rule(
    axis: str, group: list[RankFacts], backend: str, words: str
) -> None:
    """It is never insisted on: only all-reduces are so slow without it."""
    for asked in ("auto", "shared_memory"):
        found, reason = choose_all_reduce(asked, axis, group, group)
        assert found == backend and words in reason
    assert choose_all_reduce("gloo", axis, group, group) == ("gloo", "asked for")


@pytest.mark.parametrize(
    ("machine", "flags", "words"),
    [
        ("x86_64", {"avx2", "avx512bw"}, ""),
        ("x86_64", {"avx2"}, "no AVX-512BW"),
        ("aarch64", {"asimd"}, "isn't safe on aarch64"),
    ],
)
def test_instructions_that_the_operator_needs(machine: str, flags: set[str], words: str) -> None:
    found = missing_instructions(machine, frozenset(flags))
    assert words in found and bool(found) == bool(words)


def test_no_master_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(RunError, match=r"rank 0 of 2 on .* couldn't join the job at None"):
        Mesh.create(Degrees(2), 0, CpuDevice(), Ledger(), MeshOptions())


def test_a_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(RunError, match=f"couldn't join the job at 127.0.0.1:{port}: .*in use"):
            Mesh.create(Degrees(2), 0, CpuDevice(), Ledger(), MeshOptions(timeout_seconds=5))


def test_hosts_meet_where_the_way_to_the_master_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A master on loopback is reached over loopback, whose interface has its address."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert own_address() == "127.0.0.1"
    assert own_interface() == "lo"
    choose_gloo_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "given")
    choose_gloo_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "given"


def test_clients_are_told_a_name_and_not_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1", "::1", "localhost", "10.1.2.3"):
        assert reached_at(host) == host
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    assert reached_at("0.0.0.0") == reached_at("::") == platform.node()

    def unknown(*_: object) -> None:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for host in ("0.0.0.0", "::"):
        assert not ipaddress.ip_address(reached_at(host)).is_unspecified
