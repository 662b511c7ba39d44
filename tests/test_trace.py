"""A traced run of several ranks: the trace against the ledger and torch's own tools."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from parallel.instrument.spans import Kind, Record
from parallel.instrument.trace import RankTrace, trace_document
from tests.checkpoints import make_checkpoint
from tests.instrument_cases import SKEW_NS
from tests.rank_pool import RankPool

Json = dict[str, Any]
NEW_TOKENS = 6
REQUESTS = [
    {"prompt": list(range(5, 5 + n)), "sampling": {"max_tokens": NEW_TOKENS, "ignore_eos": True}}
    for n in (9, 40)
]


def run(
    pool: RankPool, checkpoint: Path, degrees: list[Any], steps: int = 64, watch: str = ""
) -> list[Json]:
    ranks = degrees[0] * degrees[1]
    answers: list[Json] = pool.run(
        "tests.instrument_cases:traced",
        ranks,
        model=str(checkpoint),
        degrees=degrees,
        requests=REQUESTS,
        steps=steps,
        watch=watch,
    )
    return answers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3", tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def answers(pool: RankPool, checkpoint: Path) -> list[Json]:
    return run(pool, checkpoint, [2, 2, 1, None])


@pytest.fixture(scope="module")
def events(answers: list[Json]) -> list[Json]:
    found: list[Json] = json.loads(json.dumps(answers[0]["trace"]))["traceEvents"]
    return found


def spans(events: list[Json], track: str) -> list[Json]:
    return sorted((e for e in events if e.get("cat") == track), key=lambda e: (e["pid"], e["ts"]))


def test_the_trace_has_all_ranks_and_their_threads(events: list[Json]) -> None:
    titles = [(e["pid"], e["name"], e["args"]["name"]) for e in events if e["ph"] == "M"]
    for rank, name in enumerate(f"rank {r} (tp {r % 2}, pp {r // 2}, dp 0)" for r in range(4)):
        own = [title[1:] for title in titles if title[0] == rank]
        threads = ("steps", "layers", "collectives", "waiting for peers")
        assert own == [("process_name", name), *(("thread_name", t) for t in threads)]
    assert {e["ph"] for e in events} == {"M", "X", "C"}
    assert {e["pid"] for e in events if e["ph"] == "X"} == {0, 1, 2, 3}
    assert all(e["ts"] >= 0 and e["dur"] >= 0 for e in events if e["ph"] == "X")


def inside(inner: Json, outer: Json) -> bool:
    # Times are microseconds as floats: to the nanosecond.
    ends = [e["ts"] + e["dur"] + 1e-3 for e in (inner, outer)]
    return inner["ts"] >= outer["ts"] - 1e-3 and ends[0] <= ends[1] + 1e-3


def test_spans_nest(events: list[Json]) -> None:
    steps = [e for e in spans(events, "step") if " step " in e["name"]]
    layers, collectives = spans(events, "layer"), spans(events, "collective")
    assert len(layers) == 4 * len(steps) // 2
    for part in (*layers, *collectives, *(e for e in events if e.get("name") == "sampling")):
        (step,) = [
            s for s in steps if (s["pid"], s["args"]["step"]) == (part["pid"], part["args"]["step"])
        ]
        assert inside(part, step)
    for collective in collectives:
        around = [s for s in layers if s["pid"] == collective["pid"] and inside(collective, s)]
        assert len(around) == (collective["args"]["layer"] in ("attention", "ffn"))
    for wait in spans(events, "wait"):
        assert any(c["pid"] == wait["pid"] and inside(wait, c) for c in collectives)
    for track in (steps, layers, collectives):
        for one, after in pairwise(track):
            assert one["pid"] != after["pid"] or after["ts"] >= one["ts"] + one["dur"] - 1e-3


def test_all_ranks_are_on_one_clock(events: list[Json]) -> None:
    """Nobody leaves a sum before everybody has come; nothing arrives before it was sent."""
    calls = spans(events, "collective")
    for pair in ((0, 1), (2, 3)):
        sums = [[c for c in calls if c["pid"] == r and c["args"]["axis"] == "tp"] for r in pair]
        assert len(sums[0]) > 20
        for one, other in zip(*sums, strict=True):
            assert one["name"] == other["name"]
            assert max(one["ts"], other["ts"]) <= min(c["ts"] + c["dur"] for c in (one, other))
    for rank in (0, 1):
        sent = [c for c in calls if c["pid"] == rank and c["name"].startswith("send")]
        got = [c for c in calls if c["pid"] == rank + 2 and c["name"].startswith("recv")]
        assert {c["args"]["peer"] for c in sent} == {rank + 2}
        for one, other in zip(sent, got, strict=True):
            assert one["ts"] <= other["ts"] + other["dur"]


def test_calls_bytes_and_waits_are_those_of_the_ledger(
    answers: list[Json], events: list[Json]
) -> None:
    fields = ("axis", "phase", "backend")
    calls: Counter[Any] = Counter()
    sent: Counter[Any] = Counter()
    seconds: Counter[Any] = Counter()
    for event in spans(events, "collective"):
        key = (event["pid"], event["name"], *(event["args"][f] for f in fields))
        calls[key] += 1
        sent[key] += event["args"]["bytes"]
        seconds[key] += event["dur"] / 1e6
    rows = {
        (r["rank"], f"{r['op']} {r['layer']}", *(r[f] for f in fields)): r
        for answer in answers
        for r in answer["rows"]
    }
    assert calls == {key: row["calls"] for key, row in rows.items()}
    assert sent == {key: row["bytes"] for key, row in rows.items() if row["bytes"]} | {
        key: 0 for key, row in rows.items() if not row["bytes"]
    }
    for key, row in rows.items():
        assert seconds[key] == pytest.approx(row["seconds"], rel=1e-3)
    waits: Counter[Any] = Counter()
    for event in spans(events, "wait"):
        waits[event["pid"], event["args"]["phase"], event["args"]["axis"]] += event["dur"] / 1e6
    found: Counter[Any] = Counter()
    for row in answers[0]["report"]["collectives"]:
        assert row["sampled_calls"] == row["calls"]
        assert row["wait_seconds"] + row["transfer_seconds"] == pytest.approx(row["seconds"])
        assert (row["exposed_seconds"], row["hidden_seconds"]) == (row["seconds"], 0.0)
        found[row["rank"], row["phase"], row["axis"]] += row["wait_seconds"]
    for key, total in found.items():
        assert waits[key] == pytest.approx(total, rel=1e-3, abs=1e-6)


def test_memory_is_counted_in_trace_and_report(answers: list[Json], events: list[Json]) -> None:
    rows = answers[0]["report"]["memory_timeline"]
    for rank in range(4):
        own = [row for row in rows if row["rank"] == rank]
        assert [row["event"] for row in own] == ["loaded", "warmed up"]
        assert [row["seconds"] for row in own] == sorted(row["seconds"] for row in own)
        assert own[0]["activations"] is None and own[1]["activations"] > 0
        counters = [e for e in events if e["ph"] == "C" and e["pid"] == rank]
        # Its first one may be of an event before: others may begin while a rank still warms up.
        assert counters[-1]["args"]["weights"] == own[1]["weights"] > 0
        assert counters[-1]["args"]["resident"] == own[1]["resident"] > own[1]["weights"]


def test_the_instruments_say_what_they_cost(answers: list[Json]) -> None:
    cost = answers[0]["report"]["instrument"]
    assert len(cost["ranks"]) == 4
    for entry, answer in zip(cost["ranks"], answers, strict=True):
        assert entry["collectives"] == sum(row["calls"] for row in answer["rows"])
        assert entry["steps"] == sum(s["steps"] for s in answers[0]["report"]["steps"].values())
        assert 0 < entry["seconds"] / entry["steps"] <= cost["seconds_per_step"]


def test_only_the_last_steps_are_kept(pool: RankPool, checkpoint: Path) -> None:
    answers = run(pool, checkpoint, [2, 1, 1, None], steps=2)
    events = answers[0]["trace"]["traceEvents"]
    steps = sum(s["steps"] for s in answers[0]["report"]["steps"].values())
    assert {e["args"]["step"] for e in events if e["ph"] == "X"} == {steps - 1, steps}


def test_torch_counts_the_same_collectives(pool: RankPool, checkpoint: Path) -> None:
    answers = run(pool, checkpoint, [2, 1, 1, None], watch="counts")
    for answer in answers:
        calls: Counter[str] = Counter()
        for row in answer["rows"]:
            calls[row["op"]] += row["calls"]
        expected = {"c10d.allreduce_": "all_reduce", "c10d.allgather_": "all_gather"}
        assert dict(answer["found"]) == {c10d: calls[op] for c10d, op in expected.items()}


def test_torchs_profiler_sees_the_same_calls_in_the_same_order(
    pool: RankPool, checkpoint: Path
) -> None:
    answers = run(pool, checkpoint, [2, 2, 1, None], watch="profiler")
    events = answers[0]["trace"]["traceEvents"]
    for rank, answer in enumerate(answers):
        ours = [e["name"].split()[0] for e in spans(events, "collective") if e["pid"] == rank]
        operators = [e for e in answer["found"] if e[0].startswith("tessera::")]
        assert [e[0].removeprefix("tessera::").rstrip("_") for e in operators] == ours
        within = [e for e in answer["found"] if e[0] in ("gloo:all_reduce", "gloo:all_gather")]
        around = [e for e in operators if "all_" in e[0]]
        for (inner, begin, end), (outer, begins, ends) in zip(within, around, strict=True):
            assert inner.partition(":")[2] == outer.removeprefix("tessera::").rstrip("_")
            assert begins <= begin <= end <= ends


def test_clocks_that_differ_become_one(pool: RankPool) -> None:
    first, *others = pool.run("tests.instrument_cases:skewed_clocks", 3)
    assert first["offsets"] == [] and first["moved"] == 0
    for rank, answer in enumerate(others, 1):
        assert answer["origin"] == first["origin"] and len(answer["offsets"]) == 2
        for offset, error in zip(answer["offsets"], answer["errors"], strict=True):
            assert abs(offset + rank * SKEW_NS) <= error


def test_a_trace_of_nothing_and_of_late_ranks() -> None:
    assert trace_document([], lambda axis, rank: (rank,), 4)["traceEvents"] == []
    kind = Kind("collective", "all_reduce", "decode", "ffn", "tp", "gloo")
    memory = [
        {"stamp_ns": at, "weights": 1, "resident": at, "allocated": None}
        for at in (500, 900, 2500, 9000)
    ]
    ranks = [
        RankTrace("a", (0, [kind], [Record(0, 7, 1000, 5000, 64, -1)]), memory),
        RankTrace("b", (1, [kind], [Record(0, 7, 3000, 5000, 64, -1)]), []),
    ]
    events = trace_document(ranks, lambda axis, rank: (0, 1), 1)["traceEvents"]
    (wait,) = spans(events, "wait")
    assert (wait["pid"], wait["ts"], wait["dur"]) == (0, 0.0, 2.0)
    counters = [(e["ts"], e["args"]) for e in events if e["ph"] == "C"]
    assert counters == [
        (0.0, {"weights": 1, "resident": 900}),
        (1.5, {"weights": 1, "resident": 2500}),
    ]
