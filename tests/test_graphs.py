"""Decode steps as graphs, with a stand-in that keeps what CUDA's graphs keep: the call and its
tensors. A replay runs the call again, so that whatever it took from the host shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from parallel.architecture.spec import ModelSpec
from parallel.collectives.communicator import Communicator
from parallel.collectives.mesh import Mesh, MeshOptions
from parallel.devices.base import Graph, Timer
from parallel.devices.cpu import CpuDevice, HostTimer
from parallel.errors import CaptureError
from parallel.instrument.ledger import Ledger
from parallel.kernels import attention_choice
from parallel.kernels.attention import PagedAttention
from parallel.kernels.attention_cuda_flash import Flash2, Flash3, FlashAttention
from parallel.kernels.attention_cuda_flashinfer import FlashInferAttention
from parallel.kernels.attention_cuda_flex import FlexAttention
from parallel.kernels.attention_cuda_varlen import VarlenAttention
from parallel.kernels.attention_form import Form, Wanted
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.activations import stage_shape
from parallel.planner.formats import choose_formats
from parallel.planner.graphs import buffer_bytes, graph_sizes
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.plan import Plan, make_plan
from parallel.requests.types import Sampling
from parallel.runtime.sequences import Chunk, StepMessage
from parallel.runtime.worker import StepResult, Worker
from tests.cuda_kernels import Flash2Module, Flash3Module, FlashInferModule, varlen_attn
from tests.specs import small_spec, toy_cluster, toy_device
from tests.test_collective_ops import Alone

PROMPTS = {0: 5, 1: 1, 2: 19}
BLOCKS = {0: [3, 1], 1: [4], 2: [0, 6, 2]}
SPEC = small_spec(num_hidden_layers=2)


@dataclass
class Again(Graph):
    """Runs the call again; the axis counted its collectives at the capture."""

    run: Callable[[], None]
    replays: int = 0

    def replay(self) -> None:
        self.replays += 1
        self.run()


class Capturing(CpuDevice):
    def __init__(self) -> None:
        super().__init__(1)
        self.graphs: list[Again] = []

    def capture(self, run: Callable[[], None]) -> Graph | None:
        self.graphs.append(Again(run))
        return self.graphs[-1]


def plan_of(spec: ModelSpec, degrees: Degrees, cuda_graphs: bool, attention: str) -> Plan:
    limits = EngineLimits(
        step_tokens=32,
        requests=5,
        context_tokens=48,
        attention=attention,
        cuda_graphs=cuda_graphs,
    )
    cluster = toy_cluster(*[toy_device(kind="cuda")] * degrees.world_size)
    formats = choose_formats(spec, "fp32")
    layout = Layout.make(spec, degrees)
    return make_plan(layout, cluster, formats, limits, Workload(16, 16, 2), Budget(0.6))


def worker_of(
    spec: ModelSpec = SPEC,
    device: CpuDevice | None = None,
    attention: str = "auto",
    mesh: Mesh | None = None,
) -> Worker:
    """With the weights of seed 0; graphs on a device that captures."""
    on, ledger = device or CpuDevice(1), Ledger()
    if mesh is None:
        mesh = Mesh.create(Degrees(), 0, on, ledger, MeshOptions("gloo", 60.0, 1))
    plan = plan_of(spec, mesh.degrees, device is not None, attention)
    worker = Worker(plan, mesh.rank, mesh, on, ledger)
    generator = torch.Generator().manual_seed(0)
    for tensor in worker.weights.tensors:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    for _ in worker.graphs.capture(worker.sequences):
        pass
    return worker


def messages() -> Iterator[Callable[[dict[int, int]], StepMessage]]:
    """Prompts, then decodes of three, two and one sequences; each is made from the last tokens."""
    sampling = Sampling().to_wire()
    joined = [(i, list(range(7, 7 + n)), BLOCKS[i], sampling) for i, n in PROMPTS.items()]
    whole = [Chunk(1, 0, 1, True), Chunk(0, 0, 5, True), Chunk(2, 0, 19, True)]
    yield lambda _: StepMessage(0, "prefill", [], [], joined, whole)
    at = dict(PROMPTS)
    for serial, ids in enumerate(([0, 1, 2], [0, 1, 2], [2, 0], [2], [0, 1, 2]), start=1):
        chunks = [Chunk(i, at[i], 1, True) for i in ids]
        for i in ids:
            at[i] += 1

        def message(
            last: dict[int, int], serial: int = serial, chunks: list[Chunk] = chunks
        ) -> StepMessage:
            return StepMessage(serial, "decode", list(last.items()), [], [], chunks)

        yield message


def run(worker: Worker) -> list[StepResult]:
    results: list[StepResult] = []
    for make in messages():
        last = {i: c.token for i, c in results[-1].choices.items()} if results else {}
        results.append(worker.run(make(last)))
    return results


def compare(graphed: Worker, plain: Worker) -> None:
    ours, theirs = run(graphed), run(plain)
    for found, expected in zip(ours, theirs, strict=True):
        assert {i: c.token for i, c in found.choices.items()} == {
            i: c.token for i, c in expected.choices.items()
        }
    # The spare block is the last; all others hold what they would without graphs.
    for layer, cache in plain.cache.layers.items():
        for held, own in zip(cache.tensors, graphed.cache.layers[layer].tensors, strict=True):
            torch.testing.assert_close(own[: plain.plan.blocks][:7], held[:7])


FORMS: dict[str, Callable[[Wanted], PagedAttention]] = {
    "sdpa": lambda w: PagedAttention(w.facts, w.heads, w.device.torch_device),
    "flash_attn 2": lambda w: FlashAttention(w, Flash2(Flash2Module())),
    "flash_attn 3": lambda w: FlashAttention(w, Flash3(Flash3Module())),
    "flashinfer": lambda w: FlashInferAttention(w, w.device.kept("module", FlashInferModule)),
    "varlen": lambda w: VarlenAttention(w, varlen_attn),
    "flex": lambda w: FlexAttention(w, varlen_attn),
}


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("name", FORMS)
def test_replays_compute_what_the_model_does(
    name: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPEC
    if window is not None:
        spec = small_spec("mistral", num_hidden_layers=2, sliding_window=window)
    plain = worker_of(spec, attention="sdpa")
    form = Form(name, lambda _: None, FORMS[name])
    monkeypatch.setattr(attention_choice, "FORMS", (form,))
    device = Capturing()
    graphed = worker_of(spec, device)
    blocks = -(-graphed.plan.context_tokens // 16)
    sizes = graph_sizes(5, blocks, in_place=name not in ("sdpa", "varlen"))
    assert len(device.graphs) == len(graphed.graphs) == len(sizes) and graphed.graphs.reason == ""
    compare(graphed, plain)
    replayed = [g.replays for g in device.graphs]
    assert sum(replayed) == 5
    # Captured from the largest on: three rows take the size of four, then two, then one.
    assert sorted(zip(replayed, [s.rows for s in reversed(sizes)], strict=True))[-3:] == [
        (1, 1),
        (1, 2),
        (3, 4),
    ]


def test_a_later_stage_reads_what_came_and_sends_what_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = small_spec(num_hidden_layers=3)
    degrees = Degrees(pp=3)
    came = torch.randn(32, spec.hidden, generator=torch.Generator().manual_seed(1))

    def recv(self: Communicator, x: torch.Tensor, source: int, layer: str) -> torch.Tensor:
        return x.copy_(came[: len(x)])

    sent: list[list[torch.Tensor]] = [[], []]
    monkeypatch.setattr(Communicator, "recv", recv)
    mesh = Mesh.dry(degrees, 1, CpuDevice(1), Ledger())
    workers = [worker_of(spec, device, mesh=mesh) for device in (None, Capturing())]
    for worker, kept in zip(workers, sent, strict=True):
        monkeypatch.setattr(
            Communicator, "send", lambda self, x, to, layer, kept=kept: kept.append(x)
        )
        for make in messages():
            worker.run(make({0: 3, 1: 4, 2: 5}))
    dist.destroy_process_group()
    assert len(workers[1].graphs) == 3 * len(graph_sizes(2, 3, in_place=False))
    for plain, graphed in zip(*sent, strict=True):
        torch.testing.assert_close(graphed, plain)


def test_what_graphs_hold_is_what_the_plan_counts() -> None:
    worker = worker_of(device=Capturing())
    plan = worker.plan
    assert plan.spare_blocks(0) == 1 and worker.cache.blocks == plan.blocks + 1
    assert worker.cache.bytes == plan.memory[0].kv_cache
    stage = stage_shape(plan.layout, 0, plan.formats, plan.limits, plan.cluster)
    assert worker.graphs.bytes == buffer_bytes(stage, 5) == 5 * SPEC.vocabulary * 4
    plain = worker_of().plan
    assert plain.spare_blocks(0) == 0
    assert plan.memory[0].runtime > plain.memory[0].runtime


def test_without_graphs_the_reason_is_said() -> None:
    class Refusing(CpuDevice):
        def capture(self, run: Callable[[], None]) -> Graph | None:
            raise CaptureError("an operation isn't permitted while a stream captures")

    class Incapable(CpuDevice):
        pass

    plain = worker_of(attention="sdpa")
    for device, reason in ((Refusing(1), "isn't permitted"), (Incapable(1), "has no graphs")):
        worker = worker_of(device=device, attention="sdpa")
        assert len(worker.graphs) == 0 and reason in worker.graphs.reason
        assert worker.graphs.bytes == 0
    compare(worker, plain)
    assert plain.graphs.reason == "none were asked for"


# ---------------------------------------------------------------------------- sizes


@given(st.integers(1, 600), st.integers(1, 9000), st.booleans())
def test_every_batch_has_a_size_that_isnt_much_larger(rows: int, blocks: int, whole: bool) -> None:
    sizes = graph_sizes(rows, blocks, whole)
    assert list(sizes) == sorted(set(sizes)) and sizes[-1] == (rows, blocks)
    for n in {1, rows // 3 + 1, rows}:
        least = min(s.rows for s in sizes if s.rows >= n)
        assert least < 2 * n
    widths = {s.blocks for s in sizes}
    assert len(sizes) == len(widths) * len({s.rows for s in sizes})
    if whole:
        assert widths == {blocks}
    else:
        assert all(w <= 8 or -(-w // 4) in widths for w in widths)


# ---------------------------------------------------------------------------- counting


@dataclass
class Queued(HostTimer):
    """Ends when it is told, as work on a GPU does."""

    immediate = False
    ended: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def stretch_ns(self) -> tuple[int, int]:
        return 1_000_000_000, 1_250_000_000

    def done(self) -> bool:
        return self.ended


class Queueing(CpuDevice):
    immediate = False

    def __init__(self) -> None:
        super().__init__(1)
        self.timers: list[Queued] = []

    def timer(self) -> Timer:
        self.timers.append(Queued())
        return self.timers[-1]


def test_a_replay_counts_the_captured_calls_and_is_watched_as_one() -> None:
    device, ledger, counted = Queueing(), Ledger("decode"), Ledger("decode")
    axis = Communicator("tp", (0, 1), 0, Alone(), ledger, device)
    x = torch.ones(4, 2)

    def calls() -> None:
        axis.all_reduce(x, "ffn")
        axis.all_reduce(x, "ffn")
        axis.all_gather(x, [2, 3], "logits")

    with axis.counting_into(Ledger("decode")):
        calls()
    assert not device.timers and axis.waiting() is None
    with axis.counting_into(counted, timed=True):
        calls()
    assert len(device.timers) == 3 and not ledger.counters and axis.waiting() is None
    device.timers.clear()
    ran: list[int] = []
    for _ in range(3):
        axis.run_captured(lambda: ran.append(1), x, counted)
    found = {(r["op"], r["layer"]): (r["calls"], r["bytes"]) for r in ledger.rows(0)}
    assert found == {("all_reduce", "ffn"): (6, 6 * 32), ("all_gather", "logits"): (3, 3 * 48)}
    assert len(ran) == len(device.timers) == 3
    waiting = axis.waiting()
    assert waiting is not None and (waiting.op, waiting.layer) == ("replay", "captured")
    for timer in device.timers:
        timer.ended = True
    assert axis.waiting() is None
    axis.resolve()
    seconds = {(r["op"]): r["seconds"] for r in ledger.rows(0)}
    assert seconds == pytest.approx({"all_reduce": 6 * 0.25, "all_gather": 3 * 0.25})
