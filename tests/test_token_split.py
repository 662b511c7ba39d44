"""Sequence parallelism: transformers' tokens, every call counted, used where it pays."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from parallel.architecture.checkpoint import build_spec
from parallel.collectives.mesh import Mesh
from parallel.devices.fake import FakeCudaDevice
from parallel.hardware.catalogue import load_cluster
from parallel.hardware.facts import Cluster
from parallel.instrument.ledger import Ledger
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.communication import splits_tokens, step_collectives
from parallel.planner.formats import choose_formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.plan import make_plan
from parallel.planner.timing import StepModel
from parallel.planner.token_split import least_split_tokens
from parallel.planner.work import StepWork
from parallel.requests.types import Sampling
from parallel.runtime.sequences import Chunk, StepMessage
from parallel.runtime.worker import Worker
from tests.checkpoints import CONFIGS, make_checkpoint
from tests.engine_case import CLUSTERS, plan_for
from tests.rank_pool import RankPool
from tests.specs import BIG, llama31_config, toy_cluster, toy_device
from tests.test_parity import check_against_transformers, greedy, prompts

SPLIT = 5
"""One more than the requests of `plan_for`."""


@pytest.mark.parametrize(
    ("name", "degrees", "collectives"),
    [
        ("llama-5-heads-1-kv", Degrees(tp=2), "gloo"),
        ("llama-5-heads-1-kv", Degrees(tp=2), "shared_memory"),
        ("qwen3", Degrees(tp=3), "gloo"),
        ("gpt2", Degrees(tp=2), "gloo"),
        ("qwen2-tied-window", Degrees.of_stages([2, 1]), "gloo"),
    ],
    ids=str,
)
def test_split_tokens_equal_transformers(
    name: str,
    degrees: Degrees,
    collectives: str,
    pool: RankPool,
    tmp_path: Path,
) -> None:
    """Steps whose tokens the ranks divide are split, the others aren't."""
    path = make_checkpoint(name, tmp_path)
    vocabulary = CONFIGS[name][1]["vocab_size"]
    answers = check_against_transformers(
        pool,
        path,
        degrees,
        tmp_path,
        vocabulary,
        collectives,
        step_tokens=30,
        sequence_parallel="on",
    )
    split = [rank for rank in range(degrees.world_size) if len(degrees.group("tp", rank)) > 1]
    for rank in split:
        found = {(r["phase"], r["op"]) for r in answers[rank]["collectives"]}
        assert ("prefill", "reduce_scatter") in found
        assert ("decode", "reduce_scatter") not in found


@pytest.mark.parametrize(
    ("degrees", "tokens"),
    [(Degrees(tp=2), 12), (Degrees(tp=2), 13), (Degrees(tp=3), 12), (Degrees(2, 2), 8)],
    ids=str,
)
def test_every_call_is_the_plans(
    degrees: Degrees, tokens: int, pool: RankPool, tmp_path: Path
) -> None:
    """Calls and bytes of a prompt's one step, split or not, against the closed form."""
    path = make_checkpoint("qwen3", tmp_path)
    plan = plan_for(str(path), degrees, sequence_parallel="on")
    assert plan.split_tokens == SPLIT
    answers = pool.run(
        "tests.engine_case:generate",
        degrees.world_size,
        model=str(path),
        degrees=list(astuple(degrees)),
        requests=greedy(prompts(503, (tokens,)), tokens=2),
        sequence_parallel="on",
    )
    for rank, answer in enumerate(answers):
        rows = [r for r in answer["collectives"] if r["phase"] == "prefill" and r["op"] != "recv"]
        found = {(r["axis"], r["op"], r["layer"]): (r["calls"], r["bytes"]) for r in rows}
        called = step_collectives(plan.layout, rank, plan.formats, tokens, 1, SPLIT)
        assert found == {(c.axis, c.op, c.layer): (c.calls, c.calls * c.sent_bytes) for c in called}
        split = splits_tokens(tokens, degrees.tp, SPLIT)
        assert split == (("tp", "reduce_scatter", "ffn") in found)


def threshold(
    cluster: Cluster, asked: str = "auto", step_tokens: int = 8192, tp: int = 8
) -> int | None:
    limits = EngineLimits(step_tokens=step_tokens, requests=8, sequence_parallel=asked)
    layout = Layout.make(BIG, Degrees(tp=tp))
    return least_split_tokens(layout, cluster, choose_formats(BIG), limits)


def test_who_asks_gets_it_for_steps_that_decoding_cannot_fill() -> None:
    toys = toy_cluster(*[toy_device()] * 8)
    assert threshold(toys, "on") == 9
    assert threshold(toys, "on", step_tokens=8) is None
    assert threshold(toys, "on", tp=1) is None
    assert threshold(toys, "off") is None
    assert threshold(toys, "auto") is None


@pytest.mark.parametrize("name", ["8xh100", "4xl40s"])
def test_it_is_used_where_the_predicted_step_is_shorter(name: str) -> None:
    cluster = load_cluster(name, CLUSTERS)
    tp = 4
    layout, formats = Layout.make(BIG, Degrees(tp=tp)), choose_formats(BIG)
    whole = StepModel(layout, cluster, formats)
    split = StepModel(layout, cluster, formats, split_tokens=1)

    def saves(tokens: int) -> bool:
        work = StepWork.prompt(tokens)
        return split.step(work).seconds < whole.step(work).seconds

    least = threshold(cluster, tp=tp)
    sizes = [8192 >> n for n in range(10) if 8192 >> n > 8]
    paying = [n for i, n in enumerate(sizes) if all(saves(m) for m in sizes[: i + 1])]
    assert least == (paying[-1] if paying else None)


@pytest.mark.parametrize("collectives", ["gloo", "shared_memory"])
def test_live_tensors_stay_below_the_plan(collectives: str, pool: RankPool, tmp_path: Path) -> None:
    """The plan's bytes are those of steps that aren't split, which hold more."""
    limits = {"step_tokens": 48, "requests": 6, "context_tokens": 200, "sequence_parallel": "on"}
    cases = [
        {"model": str(make_checkpoint(name, tmp_path)), "limits": {**limits, "kernels": kernels}}
        for name in CONFIGS
        for kernels in ("auto", "portable")
    ]
    arguments = {"degrees": [2, 1], "cases": cases, "collectives": collectives}
    for rank in pool.run("tests.activation_cases:peaks", 2, **arguments):
        assert len(rank) == len(cases)
        for found in rank:
            assert found["planned"] == found["predicted"] >= found["measured"]


@pytest.mark.parametrize("rank", [0, 9])
def test_one_rank_of_many_counts_its_split_steps(rank: int) -> None:
    """On fake CUDA tensors: 70 billion parameters, eight ranks a stage, a chunk of 304 tokens."""
    degrees, device, ledger = Degrees(tp=8, pp=2), FakeCudaDevice(), Ledger()
    spec = build_spec(llama31_config(80, 8192, 64, 28672), None, "70B")
    limits = EngineLimits(requests=8, context_tokens=4096, sequence_parallel="on")
    node = load_cluster("8xh200", CLUSTERS).nodes[0]
    network = load_cluster("2x8xa100", CLUSTERS).network
    cluster = Cluster("h200s", (node, replace(node, name="other")), network)
    layout, formats = Layout.make(spec, degrees), choose_formats(spec)
    plan = make_plan(layout, cluster, formats, limits, Workload(512, 128, 8), Budget())
    joined = [(0, [1] * 304, list(range(19)), Sampling().to_wire())]
    with FakeTensorMode(allow_non_fake_inputs=True):
        worker = Worker(plan, rank, Mesh.dry(degrees, rank, device, ledger), device, ledger)
        worker.run(StepMessage(0, "prefill", [], [], joined, [Chunk(0, 0, 304, True)]))
    dist.destroy_process_group()
    rows = [r for r in ledger.rows(rank) if r["op"] != "recv"]
    called = step_collectives(layout, rank, formats, 304, 1, 9)
    assert {(r["axis"], r["op"], r["layer"]): (r["calls"], r["bytes"]) for r in rows} == {
        (c.axis, c.op, c.layer): (c.calls, c.calls * c.sent_bytes) for c in called
    }
    assert ("tp", "reduce_scatter", "ffn") in {(c.axis, c.op, c.layer) for c in called}
