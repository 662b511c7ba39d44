"""Packed products: the same bytes, results within their rounding, nothing packed that would break
the plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.collectives.communicator import Communicator
from parallel.devices.base import PackedTable
from parallel.devices.cpu import CpuDevice
from parallel.devices.huge_pages import HugePages
from parallel.devices.native import library
from parallel.errors import ConfigError, RunError
from parallel.hardware.probe import probe_local
from parallel.instrument.ledger import Ledger
from parallel.kernels.linear import Linear, Table
from parallel.layout.degrees import Degrees
from parallel.models.transformer import Transformer
from parallel.planner.limits import EngineLimits
from parallel.sharding.builder import LayerBuilder
from parallel.sharding.loader import ShardReader
from parallel.sharding.weights import Weights
from tests.checkpoints import CONFIGS, SMALL, make_checkpoint
from tests.engine_case import plan_for
from tests.rank_pool import RankPool

PACKS = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
CPU = probe_local(1).device(0).type
NATIVE = [CpuDevice(native=True)] if CPU.native_kernels else []
"""Nothing where the native kernels can't run."""


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def assert_rounded(found: torch.Tensor, exact: torch.Tensor, inner: int) -> None:
    """`found` is `exact` (float64) rounded once to bf16, after a sum in float32 of products of
    about 1 in magnitude: half a unit of bf16 is 2⁻⁸ of the value at most, and one of the float32
    sum's roundings 2⁻²⁴ of a sum that stays below 8·√inner."""
    bound = 2.0**-8 * exact.abs() + 2.0**-24 * 8 * inner**0.5 * inner
    assert bool(((found - exact).abs() <= bound).all())


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("device", NATIVE)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 100),
    pairs=st.integers(1, 90),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_native_products_are_rounded_once(
    device: CpuDevice, rows: int, columns: int, pairs: int, bias: bool, seed: int
) -> None:
    weight, x = random(columns, 2 * pairs, seed=seed), random(rows, 2 * pairs, seed=seed + 10)
    added = random(columns, seed=seed + 20) if bias else None
    exact = x.double() @ weight.double().t() + (0 if added is None else added.double())
    packed = device.pack_linear(weight.clone(), added)
    assert packed is not None and packed.bytes == weight.nbytes
    assert_rounded(packed(x), exact, 2 * pairs)
    wide = packed.wide(x)
    assert wide.dtype is torch.float32
    torch.testing.assert_close(wide.bfloat16(), packed(x), rtol=0, atol=0)
    bound = 2.0**-24 * 8 * (2 * pairs) ** 1.5 + 2.0**-24 * exact.abs()
    assert bool(((wide - exact).abs() <= bound).all())


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("device", NATIVE)
@pytest.mark.parametrize("rows", [1, 13])
def test_a_head_keeps_what_bf16_would_round_away(device: CpuDevice, rows: int) -> None:
    """256.25 and 256.5 are the same number in bf16, which has 8 digits."""
    made = Linear(torch.tensor([[256, 0.25], [256, 0.5], [256, 0]]).bfloat16(), None)
    assert made.pack(device) is not None
    found = made.wide(torch.ones(rows, 2).bfloat16(), device)
    assert found.tolist() == [[256.25, 256.5, 256.0]] * rows


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_heads_that_are_not_packed_are_float_as_well(dtype: torch.dtype) -> None:
    weight, x = random(6, 4).to(dtype), random(3, 4, seed=1).to(dtype)
    found = Linear(weight, None).wide(x, CpuDevice())
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, F.linear(x, weight).float(), rtol=0, atol=0)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("device", NATIVE)
@pytest.mark.parametrize("rows", [1, 12, 13, 97, 200])
@pytest.mark.parametrize(("columns", "inner"), [(96, 2050), (33, 4100), (576, 576)])
def test_a_row_has_the_result_that_it_has_alone(
    device: CpuDevice, threads: int, rows: int, columns: int, inner: int
) -> None:
    """Whatever else is in the batch, and however long the sums are."""
    weight, x = random(columns, inner), random(rows, inner, seed=1)
    packed = device.pack_linear(weight.clone(), None)
    assert packed is not None
    together = packed(x)
    assert_rounded(together, x.double() @ weight.double().t(), inner)
    torch.set_num_threads(3 - threads)
    alone = torch.cat([packed(row) for row in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    torch.testing.assert_close(packed.wide(x).bfloat16(), together, rtol=0, atol=0)


@pytest.mark.parametrize("device", NATIVE)
@pytest.mark.parametrize("columns", [7, 32, 33, 80])
def test_rows_of_a_packed_table(device: CpuDevice, threads: int, columns: int) -> None:
    weight, x = random(columns, 46), random(3, 46, seed=1)
    table = Table(weight.clone())
    plain = table(x)
    packed = table.pack(device)
    assert isinstance(packed, PackedTable) and table.weight is None
    ids = torch.randint(0, columns, (40,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(table.rows(ids), weight[ids], rtol=0, atol=0)
    torch.testing.assert_close(table(x), plain, rtol=2**-7, atol=2**-7)
    for wrong in (-1, columns):
        with pytest.raises(IndexError, match=f"id {wrong} is out of range"):
            table.rows(torch.tensor([0, wrong]))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("device", NATIVE)
def test_products_of_views_and_of_nothing(device: CpuDevice) -> None:
    weight, wide = random(40, 32), random(6, 100, seed=1)
    packed = device.pack_linear(weight.clone(), None)
    assert packed is not None
    views = wide[:, 3:35]
    torch.testing.assert_close(packed(views), packed(views.contiguous()), rtol=0, atol=0)
    assert packed(wide[:0, :32]).shape == (0, 40)
    with pytest.raises(RuntimeError, match=r"inputs are bf16 \[T, 32\]"):
        packed(wide)


@pytest.mark.parametrize("device", NATIVE)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((65, 63), torch.bfloat16), ((64, 64), torch.float32), ((64, 64), torch.float16)],
)
def test_what_has_no_native_product_stays(
    device: CpuDevice, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight = random(*shape).to(dtype)
    made = Linear(weight.clone(), None)
    assert made.pack(device) is None
    assert made.weight is not None and torch.equal(made.weight, weight)


def test_a_build_that_fails_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho no such instruction >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(
        RunError, match=r"native kernels failed .*build\.log.*engine\.kernels=portable"
    ):
        library.build()
    (log,) = tmp_path.glob("extensions/*/build.log")
    assert "no such instruction" in log.read_text()


@pytest.mark.parametrize("kernels", ["auto", "native", "portable"])
def test_which_kernels_a_device_gets(kernels: str) -> None:
    without, limits = replace(CPU, native_kernels=False), EngineLimits(kernels=kernels)
    assert limits.native(replace(CPU, native_kernels=True)) == (kernels != "portable")
    if kernels == "native":
        with pytest.raises(ConfigError, match=r"'cpu' doesn't have .* engine\.kernels=auto"):
            limits.native(without)
    else:
        assert not limits.native(without)


def test_tensors_in_huge_pages_lie_apart() -> None:
    pages = HugePages()
    tensors = [pages.take(shape, torch.bfloat16) for shape in [(3, 5), (1024, 1024), (7,)]]
    for value, tensor in enumerate(tensors):
        tensor.fill_(value)
    assert [bool((t == value).all()) for value, t in enumerate(tensors)] == [True] * 3
    assert [tuple(t.shape) for t in tensors] == [(3, 5), (1024, 1024), (7,)]
    assert all(t.data_ptr() % 64 == 0 for t in tensors)
    assert tensors[0].data_ptr() % (2 << 20) == 0


def linear(out: int, into: int, dtype: torch.dtype = torch.bfloat16) -> Linear:
    generator = torch.Generator().manual_seed(out)
    weight = torch.randn(out, into, generator=generator).to(dtype)
    return Linear(weight, torch.randn(out, generator=generator).to(dtype))


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
@pytest.mark.parametrize("shape", [(64, 64), (192, 576), (768, 1024)])
def test_packed_products_equal_plain_ones(rows: int, shape: tuple[int, int]) -> None:
    made = linear(*shape)
    weight, bias = made.weight, made.bias
    assert weight is not None
    x = torch.randn(rows, shape[1]).bfloat16()
    packed = made.pack(CpuDevice())
    assert (packed is not None) == PACKS
    exact = F.linear(x.double(), weight.double(), bias if bias is None else bias.double())
    assert_rounded(made(x), exact, shape[1])
    if packed is not None:
        assert packed.bytes == weight.nbytes
        assert made.weight is None


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((65, 64), torch.bfloat16),
        ((64, 100), torch.bfloat16),
        ((64, 64), torch.float32),
        ((64, 64), torch.float16),
    ],
)
def test_what_would_change_size_or_result_stays(shape: tuple[int, int], dtype: torch.dtype) -> None:
    made = linear(*shape, dtype)
    assert made.pack(CpuDevice()) is None
    assert made.weight is not None


@pytest.mark.parametrize("device", [CpuDevice(), *NATIVE])
@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_rank_holds_what_the_plan_says(
    device: CpuDevice, tied: bool, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2}
    CONFIGS["packable"] = ("Qwen2", {**SMALL, **sizes, "tie_word_embeddings": tied})
    path = make_checkpoint("packable", tmp_path, "bfloat16")
    plan = plan_for(str(path), Degrees())
    weights = Weights(plan.layout, 0, torch.bfloat16, device)
    builder = LayerBuilder(weights, Communicator("tp", (0,), 0, None, Ledger(), device))
    Transformer(builder)
    ShardReader().fill(weights.targets, lambda _: None)
    before = len(weights.tensors)
    builder.pack()
    assert weights.bytes == plan.memory[0].weights
    assert weights.targets == []
    if device.native:
        assert len(weights.tensors) == before - 4 * plan.layout.spec.layers - 1
    elif PACKS and tied:
        assert len(weights.tensors) == before - 4 * plan.layout.spec.layers


@pytest.mark.parametrize("degrees", [Degrees(), Degrees(2)] if NATIVE else [], ids=str)
def test_tokens_in_bf16_are_those_of_each_request_alone(
    degrees: Degrees, pool: RankPool, tmp_path: Path
) -> None:
    """To the last bit of their probabilities: prompts are cut elsewhere in company, and batches
    have other sizes."""
    path = make_checkpoint("qwen2-tied-window", tmp_path, "bfloat16")
    generator = torch.Generator().manual_seed(3)
    sampling = {"max_tokens": 24, "ignore_eos": True, "logprobs": 0}
    requests = [
        {"prompt": torch.randint(3, 96, (n,), generator=generator).tolist(), "sampling": sampling}
        for n in (37, 5, 1, 70, 12)
    ]

    def run(chosen: list[dict[str, Any]]) -> tuple[list[list[int]], list[list[float]]]:
        answer = pool.run(
            "tests.engine_case:generate",
            degrees.world_size,
            model=str(path),
            degrees=astuple(degrees),
            requests=chosen,
        )[0]
        return answer["tokens"], answer["logprobs"]

    together = run(requests)
    alone = [run([request]) for request in requests]
    assert together == ([t for (t,), _ in alone], [p for _, (p,) in alone])
    assert all(isinstance(p, float) for sequence in together[1] for p in sequence)
