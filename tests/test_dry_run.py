"""The real model code on CUDA tensors without a GPU: Llama 3.1 70B and 405B as one rank of many.

Nothing is allocated and nothing sent; shapes, devices, bytes and the number of collectives are
those of the real run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
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
from parallel.planner.communication import step_collectives
from parallel.planner.formats import choose_formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.plan import make_plan
from parallel.requests.types import Sampling
from parallel.runtime.sequences import Chunk, StepMessage
from parallel.runtime.worker import Worker
from tests.specs import llama31_config

CLUSTERS = Path(__file__).resolve().parent.parent / "configs" / "clusters"


SPECS = {
    "70B": build_spec(llama31_config(80, 8192, 64, 28672), None, "70B"),
    "405B": build_spec(llama31_config(126, 16384, 128, 53248), None, "405B"),
}


def h200s(nodes: int) -> Cluster:
    node = load_cluster("8xh200", CLUSTERS).nodes[0]
    network = load_cluster("2x8xa100", CLUSTERS).network
    return Cluster("h200s", tuple(replace(node, name=f"n{i}") for i in range(nodes)), network)


@pytest.fixture
def fake() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("model", "degrees", "rank"),
    [
        ("70B", Degrees(tp=8), 3),
        ("70B", Degrees(tp=8, pp=2), 9),
        ("70B", Degrees(tp=5, pp=3), 14),
        ("70B", Degrees(tp=8, pp=4, dp=2), 63),
        ("405B", Degrees(tp=8, pp=2), 0),
        ("405B", Degrees(tp=16), 5),
        ("405B", Degrees(tp=8, pp=8), 63),
        ("405B", Degrees(tp=64), 17),
        ("70B", Degrees.of_stages([2, 3, 8], dp=2), 0),
        ("70B", Degrees.of_stages([2, 3, 8], dp=2), 3),
        ("70B", Degrees.of_stages([2, 3, 8], dp=2), 25),
        ("405B", Degrees.of_stages([8, 4, 4, 2]), 1),
    ],
    ids=str,
)
def test_one_rank_of_many(model: str, degrees: Degrees, rank: int, fake: None) -> None:
    spec, device = SPECS[model], FakeCudaDevice()
    limits = EngineLimits(step_tokens=512, requests=8, context_tokens=4096)
    formats = choose_formats(spec)
    layout = Layout.make(spec, degrees)
    plan = make_plan(layout, h200s(8), formats, limits, Workload(512, 128, 8), Budget())
    ledger = Ledger()
    worker = Worker(plan, rank, Mesh.dry(degrees, rank, device, ledger), device, ledger)
    assert worker.weights.bytes == plan.memory[rank].weights
    assert worker.cache.bytes == plan.memory[rank].kv_cache
    assert all(t.device.type == "cuda" for t in worker.weights.tensors)

    sampling = Sampling().to_wire()
    joined = [(0, [1] * 300, list(range(20)), sampling), (1, [1] * 9, [20], sampling)]
    chunks = [Chunk(1, 8, 1, True), Chunk(0, 0, 300, True)]
    worker.run(StepMessage(0, "prefill", [], [], joined, chunks))
    decode = [Chunk(0, 300, 1, True), Chunk(1, 9, 1, True)]
    worker.run(StepMessage(1, "decode", [(0, 5), (1, 6)], [], [], decode))

    counted = {(c.axis, c.op, c.layer): c for c in step_collectives(layout, rank, formats, 2, 2)}
    found = {k[:3]: c for k, c in ledger.counters.items() if k[3] == "decode" and k[1] != "recv"}
    assert {k: c.calls for k, c in found.items()} == {k: c.calls for k, c in counted.items()}
    assert {k: c.bytes for k, c in found.items()} == {
        k: c.calls * c.sent_bytes for k, c in counted.items()
    }


@pytest.mark.parametrize("cache", ["int8", "fp8"])
def test_a_cache_in_eight_bits(cache: str, fake: None) -> None:
    """Its bytes, scales and swap pool included, are the plan's; steps write and read it."""
    spec, device, degrees = SPECS["70B"], FakeCudaDevice(), Degrees(tp=8)
    limits = EngineLimits(step_tokens=512, requests=8, context_tokens=4096, swap_gib=1.0)
    layout = Layout.make(spec, degrees)
    whole, small = (
        make_plan(layout, h200s(8), f, limits, Workload(512, 128, 8), Budget(40.0))
        for f in (choose_formats(spec), choose_formats(spec, cache=cache))
    )
    # Of 128 elements of 2 bytes: as many of one byte, and a scale of 2.
    per_block = [p.memory[3].kv_cache / (p.blocks + p.spare_blocks(3)) for p in (whole, small)]
    assert per_block[1] / per_block[0] == 130 / 256
    assert small.swap_blocks / whole.swap_blocks == pytest.approx(256 / 130, rel=1e-3)
    ledger = Ledger()
    worker = Worker(small, 3, Mesh.dry(degrees, 3, device, ledger), device, ledger)
    assert worker.cache.bytes == small.memory[3].kv_cache
    assert worker.mover.block_bytes == per_block[1]
    joined = [(0, [1] * 300, list(range(20)), Sampling().to_wire())]
    worker.run(StepMessage(0, "prefill", [], [], joined, [Chunk(0, 0, 200, False)]))
    worker.run(StepMessage(1, "prefill", [], [], [], [Chunk(0, 200, 100, True)]))
    worker.run(StepMessage(2, "decode", [(0, 5)], [], [], [Chunk(0, 300, 1, True)]))


def test_fake_tensors_never_touch_the_host(fake: None) -> None:
    device = FakeCudaDevice()
    tensor = device.zeros((1 << 40,), torch.bfloat16)
    Mesh.dry(Degrees(tp=2), 0, device, Ledger()).tp.all_reduce(tensor, "test")
    assert tensor.device.type == "cuda" and tensor.nbytes == 2 << 40
