"""The same logits and tokens as transformers in float32, for every family and layout."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.conversion.default_model import ensure_default_model
from parallel.layout.degrees import Degrees
from parallel.planner.communication import step_collectives
from tests.checkpoints import CONFIGS, make_checkpoint, reference
from tests.engine_case import plan_for
from tests.rank_pool import RankPool

LAYOUTS = [
    Degrees(1, 1, 1),
    Degrees(2, 1, 1),
    Degrees(3, 1, 1),
    Degrees(1, 2, 1),
    Degrees(1, 3, 1),
    Degrees(2, 2, 1),
    Degrees(1, 1, 2),
]
UNLIKE_STAGES = [Degrees.of_stages(tp) for tp in ([2, 1], [1, 2], [3, 1], [1, 2, 1])]
NEW_TOKENS = 64


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def prompts(vocabulary: int, lengths: tuple[int, ...] = (5, 41, 1)) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(7)
    return [
        tuple(torch.randint(3, vocabulary, (n,), generator=generator).tolist()) for n in lengths
    ]


def greedy(given: list[tuple[int, ...]], tokens: int = NEW_TOKENS) -> list[dict[str, Any]]:
    sampling = {"max_tokens": tokens, "ignore_eos": True}
    return [{"prompt": list(p), "sampling": sampling} for p in given]


def check_against_transformers(
    pool: RankPool,
    path: Path,
    degrees: Degrees,
    tmp_path: Path,
    vocabulary: int,
    collectives: str = "gloo",
    **planning: Any,
) -> list[dict[str, Any]]:
    given = prompts(vocabulary)
    logits_file = tmp_path / "logits"
    answers: list[dict[str, Any]] = pool.run(
        "tests.engine_case:generate",
        degrees.world_size,
        model=str(path),
        degrees=list(astuple(degrees)),
        requests=greedy(given),
        collectives=collectives,
        logits_file=str(logits_file),
        **planning,
    )
    plan = plan_for(str(path), degrees, **planning)
    for rank, answer in enumerate(answers):
        assert answer["weights"] == plan.memory[rank].weights
        assert answer["kv_cache"] == plan.memory[rank].kv_cache
        assert answer["blocks_whole"]
    expected = [reference(path, p, NEW_TOKENS) for p in given]
    for dp in range(degrees.dp):
        first = torch.load(f"{logits_file}.{dp}")
        # The step has prompts of one token first, and some not at all.
        differences = torch.stack([(first - row).abs().amax(1) for row, _ in expected])
        assert bool((differences.amin(0) < 1e-4).all())
        leader = answers[degrees.rank(0, 0, dp)]
        assert leader["tokens"] == [tokens for _, tokens in expected]
        assert leader["reasons"] == ["length"] * len(given)
    return answers


@pytest.mark.parametrize("degrees", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_small_models_equal_transformers(
    name: str, degrees: Degrees, pool: RankPool, checkpoints: Path, tmp_path: Path
) -> None:
    path = make_checkpoint(name, checkpoints)
    vocabulary = CONFIGS[name][1]["vocab_size"]
    check_against_transformers(pool, path, degrees, tmp_path, vocabulary)


@pytest.mark.parametrize("name", ["llama-25-heads", "mistral-window", "qwen3", "gpt2"])
def test_portable_kernels_give_the_same(
    name: str, pool: RankPool, checkpoints: Path, tmp_path: Path
) -> None:
    """The other tests run the native ones where this machine has them."""
    path, vocabulary = make_checkpoint(name, checkpoints), CONFIGS[name][1]["vocab_size"]
    check_against_transformers(pool, path, Degrees(tp=2), tmp_path, vocabulary, kernels="portable")


@pytest.mark.parametrize("degrees", LAYOUTS, ids=str)
def test_the_default_model_equals_transformers(
    degrees: Degrees, pool: RankPool, tmp_path: Path
) -> None:
    """9 query and 3 KV heads: tp=2 is an uneven split already."""
    path = ensure_default_model(progress=False)
    check_against_transformers(pool, path, degrees, tmp_path, 49152, weights="fp32")


@pytest.mark.parametrize("name", ["llama-5-heads-1-kv", "gpt2", "llama-vocabulary-32003"])
def test_one_head_on_some_ranks(
    name: str, pool: RankPool, checkpoints: Path, tmp_path: Path
) -> None:
    path = make_checkpoint(name, checkpoints)
    check_against_transformers(pool, path, Degrees(tp=4), tmp_path, CONFIGS[name][1]["vocab_size"])


@pytest.mark.parametrize("heads", ["groups", "replicate", "padded"])
def test_every_head_map_gives_the_same(
    heads: str, pool: RankPool, checkpoints: Path, tmp_path: Path
) -> None:
    path = make_checkpoint("llama-25-heads", checkpoints)
    check_against_transformers(pool, path, Degrees(tp=2), tmp_path, 503, heads=heads)


def test_uneven_stages_with_a_tied_table_on_both_ends(
    pool: RankPool, checkpoints: Path, tmp_path: Path
) -> None:
    path = make_checkpoint("qwen2-tied-window", checkpoints)
    answers = check_against_transformers(pool, path, Degrees(pp=2), tmp_path, 503, stages=[3, 1])
    table = 503 * 80 * 4
    assert all(a["weights"] > table for a in answers)


@pytest.mark.parametrize("degrees", UNLIKE_STAGES, ids=str)
@pytest.mark.parametrize("name", ["llama-5-heads-1-kv", "qwen2-tied-window", "gpt2"])
def test_stages_of_unlike_degrees(
    name: str, degrees: Degrees, pool: RankPool, checkpoints: Path, tmp_path: Path
) -> None:
    path = make_checkpoint(name, checkpoints)
    check_against_transformers(pool, path, degrees, tmp_path, CONFIGS[name][1]["vocab_size"])


@pytest.mark.parametrize("degrees", UNLIKE_STAGES, ids=str)
def test_every_rank_counts_what_the_plan_counts(
    degrees: Degrees, pool: RankPool, checkpoints: Path
) -> None:
    """Calls and bytes of each rank's decode steps, against the planner's closed form."""
    path = make_checkpoint("qwen3", checkpoints)
    plan = plan_for(str(path), degrees)
    answers = pool.run(
        "tests.engine_case:generate",
        degrees.world_size,
        model=str(path),
        degrees=list(astuple(degrees)),
        requests=greedy(prompts(503, (9,)), tokens=5),
    )
    steps = 4
    for rank, answer in enumerate(answers):
        rows = [r for r in answer["collectives"] if r["phase"] == "decode" and r["op"] != "recv"]
        assert {(r["axis"], r["op"], r["layer"]): (r["calls"], r["bytes"]) for r in rows} == {
            (c.axis, c.op, c.layer): (steps * c.calls, steps * c.calls * c.sent_bytes)
            for c in step_collectives(plan.layout, rank, plan.formats, 1, 1)
        }
        received = sum(
            r["calls"]
            for r in answer["collectives"]
            if r["phase"] == "decode" and r["op"] == "recv"
        )
        assert received == (0 if degrees.sender(rank) is None else steps)


@pytest.mark.parametrize("degrees", [Degrees(tp=2), Degrees(pp=2)], ids=str)
def test_ledger_counts_what_the_plan_counts(
    degrees: Degrees, pool: RankPool, checkpoints: Path
) -> None:
    """Bytes and calls of a decode step, in closed form."""
    path = make_checkpoint("qwen3", checkpoints)
    answers = pool.run(
        "tests.engine_case:generate",
        2,
        model=str(path),
        degrees=list(astuple(degrees)),
        requests=greedy(prompts(503, (9,)), tokens=5),
    )
    steps, size = 4, 80 * 4
    rows = {(r["op"], r["layer"]): r for r in answers[0]["collectives"] if r["phase"] == "decode"}
    if degrees.tp == 2:
        assert rows["all_reduce", "attention"]["calls"] == steps * 4
        assert rows["all_reduce", "ffn"]["bytes"] == steps * 4 * size
        assert rows["all_reduce", "embedding"]["bytes"] == steps * size
        assert rows["all_gather", "logits"]["bytes"] == steps * 252 * 4
    else:
        assert rows["send", "stage"]["calls"] == steps
        assert rows["send", "stage"]["bytes"] == steps * size
        assert set(rows) == {("send", "stage")}


@pytest.mark.parametrize("axis", ["tp", "pp"])
def test_shared_memory_gives_the_same_and_leaves_nothing_behind(
    axis: str, pool: RankPool, checkpoints: Path, tmp_path: Path
) -> None:
    path = make_checkpoint("llama-5-heads-1-kv", checkpoints)
    before = set(Path("/dev/shm").iterdir())
    answers = check_against_transformers(
        pool, path, Degrees(**{axis: 2}), tmp_path, 503, collectives="shared_memory"
    )
    assert answers[0]["backends"][0].startswith(f"{axis}: 2 ranks over shared_memory")
    assert set(Path("/dev/shm").iterdir()) <= before
