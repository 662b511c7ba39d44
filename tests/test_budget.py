"""Whatever plan is accepted, a run at its limits stays inside its budget; refusals are true."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from random import Random
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.chosen_links import without_shared_memory
from parallel.errors import CapacityError
from parallel.hardware.facts import Cluster, Link, LinkKind, Node
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.activations import peak_bytes, stage_shape, step_bytes
from parallel.planner.formats import choose_formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.memory import communication_bytes, kv_bytes_per_token
from parallel.planner.plan import Plan, make_plan
from parallel.planner.room import Room
from parallel.planner.tape import StepShape
from parallel.planner.tape_attention import GATHER_TOKENS
from parallel.requests.types import Request, Sampling
from parallel.scheduling.blocks import BlockManager
from parallel.scheduling.scheduler import Batch, Limits, Scheduler
from parallel.units import GIB, MIB, format_bytes
from tests.specs import BIG, specs, toy_cluster, toy_device


@dataclass(frozen=True)
class Asked:
    """What a plan is made from; `budget_bytes` of each rank."""

    layout: Layout
    cluster: Cluster
    limits: EngineLimits
    workload: Workload
    weights: str

    def plan(self, budget_bytes: int) -> Plan:
        return make_plan(
            self.layout,
            self.cluster,
            choose_formats(self.layout.spec, self.weights),
            self.limits,
            self.workload,
            Budget(budget_bytes / GIB),
        )

    @property
    def least(self) -> int:
        """Bytes of the fullest rank with a cache for one request of the workload."""
        formats = choose_formats(self.layout.spec, self.weights)
        room = Room.of(self.layout, self.cluster, formats, self.limits, Budget())
        tokens = self.workload.input_tokens + self.workload.output_tokens
        tokens = min(tokens, self.limits.context(self.layout.spec.context_tokens))
        return max(m.total for m in room.memory(-(-tokens // self.limits.block_tokens)))


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    spec = draw(specs())
    heads = min(b.attention.heads for b in spec.blocks)
    degrees = Degrees(
        draw(st.integers(1, min(heads, 4))),
        draw(st.integers(1, spec.layers)),
        draw(st.sampled_from((1, 2))),
    )
    kind = draw(st.sampled_from(("cpu", "cuda")))
    device = toy_device(kind=kind, runtime_bytes=draw(st.integers(0, 1 << 20)))
    link = Link(draw(st.sampled_from(("shared_memory", "loopback", "nvlink"))), 1e9, 1e-6)
    nodes = (Node("box", (device,) * degrees.world_size, link, 8, 64 * GIB),)
    limits = EngineLimits(
        step_tokens=draw(st.integers(1, 80)),
        requests=draw(st.integers(1, 6)),
        block_tokens=draw(st.integers(1, 8)),
        context_tokens=draw(st.none() | st.integers(2, 64)),
        batches=draw(st.none() | st.integers(1, 4)),
    )
    workload = Workload(draw(st.integers(1, 40)), draw(st.integers(1, 20)), 3)
    window = draw(st.none() | st.integers(1, 20))
    windowed = [
        replace(b, attention=replace(b.attention, window=window)) if i % 2 else b
        for i, b in enumerate(spec.blocks)
    ]
    spec = replace(spec, blocks=tuple(windowed))
    layout = Layout.make(spec, degrees, heads=draw(st.sampled_from(("auto", "padded"))))
    return Asked(
        layout, Cluster("toys", nodes), limits, workload, draw(st.sampled_from(("fp32", "bf16")))
    )


def shape_of(batch: Batch) -> StepShape:
    chunks = tuple((w.count, w.start + w.count) for w in batch.work)
    return StepShape(chunks, sum(1 for w in batch.work if w.samples))


def batches_of(plan: Plan, random: Random) -> list[StepShape]:
    """The steps of requests that come and go at random, as the engine would schedule them."""
    limits = Limits(
        step_tokens=plan.limits.step_tokens,
        requests=min(plan.limits.requests, plan.limits.step_tokens),
        context_tokens=plan.context_tokens,
        batches=plan.batches,
    )
    blocks = BlockManager(plan.blocks, plan.limits.block_tokens)
    scheduler = Scheduler(blocks, limits)
    found: list[StepShape] = []
    flying: list[Batch] = []
    coming = iter(range(12))
    for _ in range(400):
        number = next(coming, None) if random.random() < 0.5 or scheduler.idle else None
        if number is not None:
            prompt = random.randint(1, max(1, plan.context_tokens - 1))
            new = random.choice((1, random.randint(1, plan.context_tokens)))
            request = Request(number, (1,) * prompt, Sampling(max_tokens=new))
            if prompt < plan.context_tokens:
                scheduler.add(request)
        batch = scheduler.schedule() if len(flying) < plan.batches else None
        if batch is not None:
            flying.append(batch)
            found.append(shape_of(batch))
        elif flying:
            done = flying.pop(0)
            scheduler.complete(done, {w.sequence.id: 7 for w in done.work if w.samples})
        elif scheduler.idle and number is None:
            break
        assert 0 <= blocks.free <= plan.blocks
    return found


@given(asked(), st.floats(1.0, 1.5), st.integers(0, 1 << 30))
def test_a_run_at_its_limits_stays_inside_its_budget(asked: Asked, more: float, seed: int) -> None:
    plan = asked.plan(int(asked.least * more) + 1)
    steps = batches_of(plan, Random(seed))
    assert all(m.total <= m.budget for m in plan.memory)
    for rank, memory in enumerate(plan.memory):
        stage = stage_shape(plan.layout, rank, plan.formats, plan.limits, plan.cluster)
        blocks = plan.blocks + plan.spare_blocks(rank)
        assert memory.kv_cache == blocks * plan.limits.block_tokens * kv_bytes_per_token(
            plan.layout, rank, plan.formats
        )
        if steps:
            taken = peak_bytes(stage, steps, plan.limits, plan.context_tokens, plan.batches)
            assert taken <= memory.activations
    for step in steps:
        assert step.tokens <= plan.limits.step_tokens
        assert len(step.chunks) <= plan.limits.requests
        assert max(context for _, context in step.chunks) < plan.context_tokens


@given(asked(), st.integers(1, 1 << 20))
def test_a_refusal_is_true(asked: Asked, less: int) -> None:
    """One byte less than is needed is refused, with the numbers; what is needed is accepted."""
    least = asked.least
    formats = choose_formats(asked.layout.spec, asked.weights)
    assert asked.plan(least + 1).blocks >= 1
    short = max(1, least - less)
    try:
        asked.plan(short)
    except CapacityError as error:
        words = str(error)
    else:
        raise AssertionError("accepted with less than one request needs")
    found = re.search(r"rank (\d+) needs ([\d.]+ \w+) .*; its budget is ([\d.]+ \w+)", words)
    assert found is not None
    memory = Room.of(asked.layout, asked.cluster, formats, asked.limits, Budget(short / GIB))
    tokens = asked.workload.input_tokens + asked.workload.output_tokens
    tokens = min(tokens, asked.limits.context(asked.layout.spec.context_tokens))
    named = memory.memory(-(-tokens // asked.limits.block_tokens))[int(found[1])]
    assert found[2] == format_bytes(named.total)
    assert found[3] == format_bytes(named.budget)
    assert named.total > named.budget


@st.composite
def legal_steps(draw: st.DrawFn, plan: Plan) -> StepShape:
    """Any chunks that the limits allow, whether or not a scheduler gets there."""
    most = min(plan.limits.step_tokens, plan.limits.requests)
    rows = min(plan.limits.step_tokens, -(-plan.limits.requests // plan.batches))
    left, longest = plan.limits.step_tokens, plan.context_tokens - 1
    chunks = []
    for _ in range(draw(st.integers(1, most))):
        if left == 0:
            break
        count = draw(st.integers(1, min(left, longest)))
        chunks.append((count, draw(st.integers(count, longest))))
        left -= count
    chunks.sort(key=lambda c: c[0] > 1)
    return StepShape(tuple(chunks), draw(st.integers(0, min(rows, len(chunks)))))


@given(asked(), st.sampled_from((7, 40, GATHER_TOKENS)), st.data())
def test_no_step_takes_more_than_the_largest(
    asked: Asked, gathered: int, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parallel.planner.tape_attention.GATHER_TOKENS", gathered)
        step_bytes.cache_clear()
        plan = asked.plan(2 * asked.least)
        if plan.context_tokens < 2:
            return
        step = data.draw(legal_steps(plan))
        for rank, memory in enumerate(plan.memory):
            stage = stage_shape(plan.layout, rank, plan.formats, plan.limits, plan.cluster)
            taken = peak_bytes(stage, [step], plan.limits, plan.context_tokens, plan.batches)
            assert taken <= memory.activations
    step_bytes.cache_clear()


@pytest.mark.parametrize(
    ("kind", "link", "tp", "pp", "mebibytes"),
    [
        ("cpu", "shared_memory", 1, 1, 0),
        ("cpu", "shared_memory", 2, 1, 66),
        ("cpu", "loopback", 2, 1, 0),
        ("cpu", "shared_memory", 1, 2, 0),
        ("cuda", "nvlink", 2, 1, 342),
        ("cuda", "nvlink", 3, 2, 392 + 342),
    ],
)
def test_buffers_of_the_backends(kind: str, link: str, tp: int, pp: int, mebibytes: int) -> None:
    device = toy_device(kind=kind)
    node = Node("box", (device,) * (tp * pp), Link(cast(LinkKind, link), 1e9, 1e-6), 8, 64 * GIB)
    layout = Layout.make(BIG, Degrees(tp, pp))
    assert (
        communication_bytes(layout, 0, Cluster("toys", (node,)), EngineLimits()) == mebibytes * MIB
    )


@pytest.mark.parametrize(("kernels", "mebibytes"), [("auto", 2), ("portable", 66)])
def test_slots_of_the_native_kernels(kernels: str, mebibytes: int) -> None:
    device = replace(toy_device(kind="cpu"), native_kernels=True)
    node = Node("box", (device,) * 2, Link("shared_memory", 1e9, 1e-6), 8, 64 * GIB)
    layout, limits = Layout.make(BIG, Degrees(2)), EngineLimits(kernels=kernels)
    cluster = Cluster("toys", (node,))
    assert communication_bytes(layout, 0, cluster, limits) == mebibytes * MIB


@pytest.mark.parametrize(("hosts", "mebibytes"), [(1, 342 + 16), (2, 342)])
def test_symmetric_memory_where_it_is_asked_for_on_one_host(hosts: int, mebibytes: int) -> None:
    devices = (toy_device(kind="cuda"),) * (2 // hosts)
    nodes = (Node("box", devices, Link("nvlink", 1e9, 1e-6), 8, 64 * GIB),) * hosts
    cluster = Cluster("toys", nodes, Link("network", 1e9, 1e-6))
    layout, asked = Layout.make(BIG, Degrees(2)), EngineLimits(symmetric_memory=True)
    assert communication_bytes(layout, 0, cluster, asked) == mebibytes * MIB
    assert communication_bytes(layout, 0, cluster, EngineLimits()) == 342 * MIB


@pytest.mark.parametrize(
    ("kind", "beside", "more"),
    [
        ("cpu", "nothing", 0),
        ("cpu", "batch", 840 * BIG.vocabulary),
        ("cpu", "front", 840 * BIG.vocabulary + 50 * MIB),
        ("cuda", "front", 0),
    ],
)
def test_rank_0_has_a_batch_or_a_front_beside_its_rank(kind: str, beside: str, more: int) -> None:
    """In the memory of its host, which is the device's on CPU."""
    device = replace(toy_device(16.0, kind=kind), runtime_bytes=7)
    cluster, layout = toy_cluster(device, device), Layout.make(BIG, Degrees(1, 1, 2))
    formats, budget = choose_formats(BIG), Budget()
    plain, held = (
        Room.of(layout, cluster, formats, EngineLimits(beside=b), budget).memory(4)
        for b in ("nothing", beside)
    )
    assert [h.runtime - p.runtime for h, p in zip(held, plain, strict=True)] == [more, 0]


def test_a_run_over_gloo_has_no_workspace() -> None:
    slow, fast = Link("loopback", 1e9, 1e-6), Link("shared_memory", 1e9, 1e-6)
    node = Node("box", (toy_device(),) * 2, fast, 8, 64 * GIB, slow)
    layout, cluster = Layout.make(BIG, Degrees(2)), Cluster("toys", (node,))
    less = communication_bytes(layout, 0, without_shared_memory(cluster), EngineLimits())
    assert communication_bytes(layout, 0, cluster, EngineLimits()) - less == 66 * MIB
