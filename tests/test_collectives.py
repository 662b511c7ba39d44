"""Collectives between real processes, counted against closed forms, and how a backend is chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parallel.collectives.choice import WORKSPACE_BYTES, RankFacts, choose_all_reduce
from parallel.errors import ConfigError
from tests.rank_pool import RankPool

CASES = "tests.collective_cases"
HERE = RankFacts("host-a", 8, 1 << 30, "")


@pytest.mark.parametrize(
    ("world", "collectives", "backend"),
    [(2, "gloo", "gloo"), (3, "gloo", "gloo"), (4, "gloo", "gloo"), (2, "auto", "shared_memory")],
)
def test_sums_and_gathers(world: int, collectives: str, backend: str, pool: RankPool) -> None:
    answers = pool.run(
        f"{CASES}:reduce_and_gather", world, degrees=[world, 1, 1], collectives=collectives
    )
    for answer in answers:
        assert answer["backend"] == backend
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


def test_a_pipeline_passes_batches_in_order(pool: RankPool) -> None:
    answers = pool.run(f"{CASES}:pass_along", 3, degrees=[1, 3, 1])
    assert answers[2]["seen"] == [1110.0 + b for b in range(6)]
    rows = {(r["op"], r["layer"]): r for r in answers[1]["rows"]}
    assert (rows["send", "stage"]["calls"], rows["send", "stage"]["bytes"]) == (6, 6 * 60)
    assert (rows["recv", "stage"]["calls"], rows["recv", "stage"]["bytes"]) == (6, 0)


def test_control_channel_reaches_every_rank(pool: RankPool) -> None:
    answers = pool.run(f"{CASES}:control", 3, degrees=[3, 1, 1])
    assert answers[0] == [{"rank": r, "got": [[1, 2]]} for r in (1, 2)]


def test_watchdog_names_the_rank_that_is_missing(pool: RankPool) -> None:
    answers = pool.run(f"{CASES}:late", 3, degrees=[3, 1, 1])
    for rank in (0, 1):
        (message,) = answers[rank]
        assert message.startswith(f"rank {rank}: all_reduce over tp of [4, 6] float32 (ffn")
        assert "missing: rank 2 (in no collective)" in message
    assert answers[2] == []


def test_an_orderly_end_is_no_death(pool: RankPool) -> None:
    assert pool.run(f"{CASES}:goodbye", 3, degrees=[3, 1, 1]) == [[], [], []]


def test_shared_memory_leaves_the_environment_alone(pool: RankPool) -> None:
    assert pool.run(f"{CASES}:environment_kept", 2, degrees=[2, 1, 1]) == [True, True]


def test_more_ranks_than_cores_go_over_gloo(pool: RankPool) -> None:
    few = [replace(HERE, cores=2)] * 3
    backend, reason = choose_all_reduce("auto", "tp", few, few)
    assert backend == "gloo" and "3 ranks share 2 cores" in reason


@pytest.mark.parametrize(
    ("group", "world", "words"),
    [
        ([HERE, replace(HERE, host="host-b")], None, "2 hosts"),
        ([HERE, HERE], [HERE] * 9, "9 ranks share 8 cores"),
        ([replace(HERE, shm_bytes=64 << 20)] * 2, None, "/dev/shm has 64.00 MiB free"),
        ([HERE, replace(HERE, buildable="ninja is not on PATH")], None, "ninja"),
    ],
)
def test_where_shared_memory_is_not_safe(
    group: list[RankFacts], world: list[RankFacts] | None, words: str
) -> None:
    backend, reason = choose_all_reduce("auto", "tp", group, world or group)
    assert backend == "gloo" and words in reason
    with pytest.raises(ConfigError, match="collectives=auto"):
        choose_all_reduce("shared_memory", "tp", group, world or group)


def test_where_shared_memory_is_safe() -> None:
    assert choose_all_reduce("auto", "tp", [HERE] * 8, [HERE] * 8)[0] == "shared_memory"
    exact = replace(HERE, shm_bytes=2 * WORKSPACE_BYTES)
    assert choose_all_reduce("auto", "tp", [exact] * 2, [exact] * 2)[0] == "shared_memory"
    assert choose_all_reduce("gloo", "tp", [HERE] * 8, [HERE] * 8) == ("gloo", "asked for")
    assert choose_all_reduce("shared_memory", "pp", [HERE] * 2, [HERE] * 2)[0] == "gloo"
