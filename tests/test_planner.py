"""Plans: bytes that add up, times in closed form, refusals whose numbers and advice are true."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.running import check_formats
from parallel.architecture.spec import Role
from parallel.errors import (
    ConfigError,
)
from parallel.hardware.overheads import Overheads
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.communication import Collective, step_collectives
from parallel.planner.formats import Formats, choose_formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.memory import ESTIMATES, kv_bytes_per_token, runtime_bytes
from parallel.planner.plan import Plan
from parallel.planner.room import Room
from parallel.planner.search import Wanted
from parallel.planner.timing import StepModel
from parallel.planner.work import StepWork
from parallel.precision import precision
from parallel.units import GIB
from tests.checkpoints import make_checkpoint
from tests.engine_case import plan_for
from tests.specs import BIG, small_spec, specs, toy_cluster, toy_device, toy_planner

FP32, BF16 = precision("fp32"), precision("bf16")


# ---------------------------------------------------------------------------- formats, limits


def test_formats_follow_the_checkpoint() -> None:
    assert choose_formats(BIG) == Formats(FP32, FP32, FP32)
    half = small_spec(torch_dtype="bfloat16")
    assert choose_formats(half) == choose_formats(half, "auto") == Formats(BF16, BF16, BF16)
    assert choose_formats(half, compute="fp32") == Formats(BF16, FP32, FP32)
    assert choose_formats(half, "fp32", "bf16", "fp16").to_json() == {
        "weights": "fp32",
        "compute": "bf16",
        "kv_cache": "fp16",
    }
    with pytest.raises(ConfigError, match="unknown precision 'bf17'; did you mean 'bf16'"):
        choose_formats(half, "bf17")


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (EngineLimits, "step_tokens", 0),
        (EngineLimits, "batches", -1),
        (EngineLimits, "context_tokens", 0),
        (Workload, "concurrency", 0),
        (Budget, "memory_gib", 0),
        (Budget, "memory_gib", float("nan")),
        (Budget, "memory_gib", float("inf")),
        (Budget, "share", 1.5),
        (Budget, "share", 0.0),
    ],
)
def test_limits_out_of_range(kind: Any, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name}={value} is out of range; give"):
        kind(**{name: value})


def test_budget() -> None:
    assert Budget().bytes(1000) == 850
    assert Budget(memory_gib=0.5, share=0.1).bytes(1000) == GIB // 2


# ---------------------------------------------------------------------------- memory


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    spec = draw(specs())
    heads = spec.blocks[0].attention.heads
    degrees = Degrees(
        draw(st.integers(1, min(heads, 4))),
        draw(st.integers(1, spec.layers)),
        draw(st.sampled_from((1, 2))),
    )
    limits = EngineLimits(
        step_tokens=draw(st.integers(1, 64)),
        requests=draw(st.integers(1, 4)),
        block_tokens=draw(st.integers(1, 8)),
    )
    formats = choose_formats(spec, draw(st.sampled_from(("fp32", "bf16"))))
    small = Workload(1, 1, draw(st.integers(1, 9)))
    wanted = Wanted(heads=draw(st.sampled_from(("auto", "padded"))))

    def made(memory_bytes: int) -> Plan:
        cluster = toy_cluster(*[toy_device(memory_bytes=memory_bytes)] * degrees.world_size)
        planner = toy_planner(spec, cluster=cluster, formats=formats, limits=limits, workload=small)
        return planner.plan(degrees, wanted)

    # Room for some of the blocks that an ample budget gets, and for a part of one more.
    ample = made(GIB)
    blocks = draw(st.integers(min(2, ample.blocks), ample.blocks + 1))
    rest = draw(st.integers(0, ample.memory[0].kv_cache // ample.blocks))
    fewer = ample.blocks - blocks
    return made(rest + max(m.total - fewer * (m.kv_cache // ample.blocks) for m in ample.memory))


@given(plans())
def test_bytes_add_up_and_the_cache_takes_what_is_left(plan: Plan) -> None:
    layout, size = plan.layout, plan.limits.block_tokens
    full = plan.limits.requests * -(-layout.spec.context_tokens // size)
    assert len(plan.memory) == layout.degrees.world_size
    for rank, m in enumerate(plan.memory):
        shards = layout.shards(rank)
        assert m.weights == sum(s.elements for s in shards) * plan.formats.weights.bytes
        per_token = kv_bytes_per_token(layout, rank, plan.formats)
        assert per_token == layout.kv_elements_per_token(rank) * plan.formats.kv_cache.bytes
        blocks = plan.blocks + plan.spare_blocks(rank)
        assert m.kv_cache == blocks * size * per_token
        assert m.peak_tensors == m.weights + m.kv_cache + m.activations
        assert m.total == m.peak_tensors + m.communication + m.runtime <= m.budget
    # Budgets are those of whole devices here (toy_planner).
    room = Room.of(layout, plan.cluster, plan.formats, plan.limits, Budget(share=1.0))
    assert room.memory(plan.blocks) == plan.memory
    more = room.memory(plan.blocks + 1)
    assert plan.blocks == full or (plan.blocks < full and any(m.total > m.budget for m in more))
    assert plan.context_tokens == min(layout.spec.context_tokens, plan.kv_cache_tokens)


def test_one_rank_holds_every_parameter_once() -> None:
    plan = toy_planner().plan(Degrees(), Wanted())
    assert plan.memory[0].weights == 4 * BIG.elements
    assert plan.memory[0].communication == 0
    assert set(ESTIMATES) < set(plan.memory[0].to_json())


def test_split_weights_and_cache() -> None:
    """What tp=2 doesn't halve is the norms, held by both ranks; 32003 rows fall 16002 + 16001."""
    plan = toy_planner().plan(Degrees(tp=2), Wanted())
    norms = sum(p.elements for p in BIG.parameters if "norm" in p.role.value)
    assert sum(m.weights for m in plan.memory) == 4 * (BIG.elements + norms)
    assert plan.memory[0].weights - plan.memory[1].weights == 4 * 2 * 1024
    assert kv_bytes_per_token(plan.layout, 0, plan.formats) == 4 * 8 * 2 * 2 * 64


# ---------------------------------------------------------------------------- communication, time


def test_collectives_of_a_step() -> None:
    """S = 5 tokens × 1024 × 4 bytes; logits: 3 rows × 10668 (of 32003 over 3) × 4 bytes."""
    layout = Layout.make(BIG, Degrees(tp=3, pp=2), stages=[5, 3])
    formats, size, piece = choose_formats(BIG), 5 * 1024 * 4, 3 * 10668 * 4
    sent = 2 * 2 * size // 3
    for rank in range(3):
        assert step_collectives(layout, rank, formats, tokens=5, rows=3) == [
            Collective("tp", "all_reduce", "embedding", 1, size, sent),
            Collective("tp", "all_reduce", "attention", 5, size, sent),
            Collective("tp", "all_reduce", "ffn", 5, size, sent),
            Collective("pp", "send", "stage", 1, size, size),
        ]
    for rank in range(3, 6):
        assert step_collectives(layout, rank, formats, tokens=5, rows=3) == [
            Collective("tp", "all_reduce", "attention", 3, size, sent),
            Collective("tp", "all_reduce", "ffn", 3, size, sent),
            Collective("tp", "all_gather", "logits", 1, 3 * piece, 2 * piece),
        ]
        assert "logits" not in [c.layer for c in step_collectives(layout, rank, formats, 5, 0)]
    assert step_collectives(Layout.make(BIG, Degrees()), 0, formats, 5, 3) == []


def test_a_decode_reads_every_weight() -> None:
    """Memory-bound on one device: bytes moved over bandwidth."""
    device = toy_device(flops_per_second={"fp32": 1e30})
    layout, formats = Layout.make(BIG, Degrees()), choose_formats(BIG)
    step = StepModel(layout, toy_cluster(device), formats).step(StepWork.decode(1, 70))
    products = [
        p for p in BIG.parameters if len(p.shape) == 2 and p.role is not Role.TOKEN_EMBEDDING
    ]
    weights = sum(p.elements for p in products)
    cache = 70 * layout.kv_elements_per_token(0)
    least = 4 * (weights + cache) / 1e10
    # Activations of one token come on top: less than a hundredth of the weights.
    assert least < step.seconds < 1.01 * least
    assert (step.slowest_seconds, step.communication_seconds) == (step.seconds, 0)


def test_stages_take_as_long_as_their_slowest_rank() -> None:
    formats = choose_formats(BIG)
    fast, slow = toy_device(), toy_device(memory_bandwidth_bytes_per_second=5e9)

    def seconds(*devices: Any) -> float:
        layout = Layout.make(BIG, Degrees(tp=2))
        return StepModel(layout, toy_cluster(*devices), formats).step(StepWork.decode(1, 1)).seconds

    assert seconds(fast, slow) == pytest.approx(seconds(slow, slow), rel=1e-3)
    assert seconds(fast, fast) < seconds(fast, slow)


def test_communication_of_a_step() -> None:
    """Ring of two at 1 GB/s and 1 µs a hop: 2 hops and S bytes for each all-reduce."""
    layout, formats = Layout.make(BIG, Degrees(tp=2)), choose_formats(BIG)
    step = StepModel(layout, toy_cluster(toy_device(), toy_device()), formats).step(
        StepWork.prompt(3)
    )
    size, piece = 3 * 1024 * 4, 16002 * 4
    calls = 1 + 2 * 8
    assert step.communication_bytes == calls * size + piece
    expected = calls * (2e-6 + size / 1e9) + (1e-6 + piece / 1e9)
    assert step.communication_seconds == pytest.approx(expected)


def test_the_tokens_way_back_and_receiving() -> None:
    """The leader's stage has its host work, a stage that receives what that takes; the way back is
    a small message's."""
    own = Overheads(step_seconds=0.25, sequence_seconds=0.5, way_seconds=2.0, logit_seconds=1e-6)
    formats = choose_formats(BIG)
    bare = StepModel(Layout.make(BIG, Degrees(pp=2)), toy_cluster(*2 * [toy_device()]), formats)
    costly = StepModel(bare.layout, toy_cluster(*2 * [toy_device(overheads=own)]), formats)
    before, after = (m.step(StepWork.decode(3, 30)) for m in (bare, costly))
    gained = [b - a for a, b in zip(before.passage.busy, after.passage.busy, strict=True)]
    assert gained == pytest.approx([1.75, 2.0 + 3 * 32003e-6])
    reply = bare.cluster.collective_seconds("send", 3 * 64, (1, 0))
    assert before.passage.back == after.passage.back == reply
    assert after.seconds == pytest.approx(sum(after.passage.busy) + reply)
    assert after.communication_seconds - before.communication_seconds == pytest.approx(2.0)
    alone = StepModel(Layout.make(BIG, Degrees()), toy_cluster(toy_device(overheads=own)), formats)
    assert alone.step(StepWork.decode(3, 30)).communication_seconds == 0.0


def test_waiting_for_late_ranks_is_communication() -> None:
    """Two stages of two ranks, 1 s for each of their collectives: eight layers have two, the first
    stage looks tokens up, the last one gathers logits."""
    late, formats = Overheads(late_seconds=1.0), choose_formats(BIG)
    layout = Layout.make(BIG, Degrees(tp=2, pp=2))
    bare, waiting = (
        StepModel(layout, toy_cluster(*4 * [toy_device(overheads=own)]), formats)
        for own in (Overheads(), late)
    )
    before, after = (m.step(StepWork.decode(3, 30)) for m in (bare, waiting))
    assert after.seconds - before.seconds == pytest.approx(2 * 8 + 2)
    assert after.communication_seconds - before.communication_seconds == pytest.approx(2 * 8 + 2)


def test_the_first_requests_wait_for_each_other() -> None:
    """One request of each client is the burst alone; the plan's load weighs it as one of ten."""
    plan = toy_planner().plan(Degrees(), Wanted())
    assert plan.load_over(1).ttft_seconds > plan.load_over(2).ttft_seconds
    assert plan.load_over(2) == plan.load


def test_an_allocators_fragmentation_is_a_share_of_the_activations() -> None:
    for share, beyond in ((0.0, 0), (0.1, 101), (0.25, 251), (2.0, 2002)):
        device = toy_device(kind="cuda", runtime_bytes=7, fragmentation=share)
        assert runtime_bytes(device, 1001) == 7 + beyond
    assert runtime_bytes(toy_device(kind="cpu", runtime_bytes=7), 1001) == 7
    assert toy_device(kind="cuda").fragmentation == 0.1


def test_uneven_stages_and_the_bubble() -> None:
    plan = toy_planner().plan(Degrees(pp=2), Wanted(stages=(7, 1)))
    even = toy_planner().plan(Degrees(pp=2), Wanted())
    assert plan.decode.slowest_seconds > even.decode.slowest_seconds
    model = StepModel(plan.layout, plan.cluster, plan.formats)
    both = StepWork.decode(2, 200)
    one = model.step(StepWork.decode(1, 100))
    assert model.round_seconds(both, 2) == 2 * one.slowest_seconds
    assert model.round_seconds(both, 1) == model.step(both).seconds
    assert (plan.batches, plan.bubble) == (2, 1 / 3)
    many = toy_planner(limits=EngineLimits(batches=7)).plan(Degrees(pp=2), Wanted())
    assert many.bubble == 1 / 8


def test_a_prompt_is_in_one_batch() -> None:
    """Four decodes and a prompt of 200 tokens, in two batches: the one with the prompt isn't
    through before both stages have computed all of it; batches of 64 tokens share it."""
    work = StepWork.decode(4, 400) + StepWork.prompt(200)
    fullest = work.fullest(2, 512)
    assert (fullest.tokens, fullest.sequences, fullest.rows, fullest.chunks) == (202, 3, 3, 1)
    assert fullest.pairs == pytest.approx(work.pairs * 202 / 204)
    assert work.fullest(2, 64).tokens == 64
    device = toy_device(flops_per_second={"fp32": 1e9})
    layout, formats = Layout.make(BIG, Degrees(pp=2)), choose_formats(BIG)
    model = StepModel(layout, toy_cluster(device, device), formats)
    whole, both = model.step(fullest), work + StepWork.prompt(200)
    assert model.round_seconds(work, 2, 512) == whole.seconds
    assert whole.seconds > 1.5 * 2 * model.step(work.part(2)).slowest_seconds
    assert model.round_seconds(both, 2, 512) < model.round_seconds(work, 2, 512) * 1.3
    assert model.round_seconds(work, 2, 64) < 0.9 * whole.seconds


def test_replicas_on_unlike_devices_are_timed_apart() -> None:
    fast, slow = toy_device(4.0), toy_device(4.0, "slow", memory_bandwidth_bytes_per_second=5e9)
    mixed = toy_planner(cluster=toy_cluster(fast, slow)).plan(Degrees(dp=2), Wanted())
    both = [
        toy_planner(cluster=toy_cluster(d, d)).plan(Degrees(dp=2), Wanted()) for d in (fast, slow)
    ]
    assert mixed.decode == both[1].decode
    assert mixed.tokens_per_second == pytest.approx(
        (both[0].tokens_per_second + both[1].tokens_per_second) / 2
    )


def test_prices() -> None:
    plan = toy_planner().plan(Degrees(tp=2), Wanted())
    cost = plan.dollars_per_million_tokens
    assert cost == pytest.approx(2 / 3600 * 1e6 / plan.tokens_per_second)
    free = toy_cluster(toy_device(4.0), toy_device(4.0, dollars_per_hour=None))
    unpriced = toy_planner(cluster=free).plan(Degrees(tp=2), Wanted())
    assert unpriced.dollars_per_million_tokens is None


# ---------------------------------------------------------------------------- JSON

PHASE = {
    *("tokens", "seconds", "communication_seconds", "communication_bytes", "communication_share"),
    *("communication_seconds_per_token", "communication_bytes_per_token"),
    *("imbalance_seconds", "bubble"),
}
PLAN = {
    *("tp", "pp", "dp", "stage_tp", "world_size", "precision", "pareto", "stages", "ranks"),
    *("kv_cache_tokens", "swap_tokens", "prefill", "decode"),
    *("ttft_ms", "tpot_ms", "tokens_per_second"),
    *("dollars_per_million_tokens", "dollars_per_hour", "joules_per_token", "kv_cache_requests"),
}
MEMORY = {
    *("weights", "kv_cache", "activations", "communication", "runtime"),
    *("swap", "peak_tensors", "total", "budget"),
}


def test_the_contracts_json() -> None:
    outcome = toy_planner(memory_gib=0.7).search(Wanted())
    body = json.loads(json.dumps(outcome.to_json(), allow_nan=False))
    assert set(body) == {"choice", "plans", "rejected"}
    for r in body["rejected"]:
        assert set(r) == {"tp", "pp", "dp", "stage_tp", "precision", "reason", "suggestion"}
    for p, plan in zip(body["plans"], outcome.plans, strict=True):
        assert set(p) >= PLAN
        assert set(p["prefill"]) == set(p["decode"]) == PHASE
        assert p["world_size"] == p["tp"] * p["pp"] * p["dp"] == len(p["ranks"])
        assert set(p["precision"]) == {"weights", "compute", "kv_cache"}
        assert p["kv_cache_tokens"] == plan.kv_cache_tokens
        assert [s["layers"][0] for s in p["stages"]] == [
            0,
            *(s["layers"][1] for s in p["stages"][:-1]),
        ]
        assert p["stages"][-1]["layers"][1] == 8
        assert [s["embedding"] for s in p["stages"]] == [i == 0 for i in range(p["pp"])]
        assert [s["head"] for s in p["stages"]] == [i == p["pp"] - 1 for i in range(p["pp"])]
        for number, s in enumerate(p["stages"]):
            assert set(s) == {"layers", "tp", "ranks", "embedding", "head"}
            assert s["ranks"] == [r["rank"] for r in p["ranks"] if r["coordinates"]["pp"] == number]
        for number, r in enumerate(p["ranks"]):
            assert set(r) == {"rank", "device", "coordinates", "memory_bytes"}
            assert (r["rank"], r["device"]) == (number, "toy")
            assert set(r["memory_bytes"]) == MEMORY
            assert r["memory_bytes"]["total"] <= r["memory_bytes"]["budget"]


def test_more_memory_never_makes_less_cache() -> None:
    caches = [
        toy_planner(memory_gib=g, devices=1).plan(Degrees(), Wanted()).kv_cache_tokens
        for g in (0.9, 1.0, 1.2, 2.0, 4.0)
    ]
    assert all(a <= b for a, b in pairwise(caches))
    assert caches[-1] == 8 * 2048


def test_formats_that_differ_can_be_planned_but_not_run(tmp_path: Path) -> None:
    plan = plan_for(str(make_checkpoint("qwen3", tmp_path)), Degrees())
    check_formats(plan)
    mixed = Formats(precision("bf16"), precision("bf16"), precision("fp16"))
    with pytest.raises(ConfigError, match="cache in fp16 can be planned but not run"):
        check_formats(type(plan)(**{**vars(plan), "formats": mixed}))
