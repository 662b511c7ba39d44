"""Packed products: the same bits, the same bytes, and nothing packed that would break the plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from parallel.collectives.communicator import Communicator
from parallel.devices.cpu import CpuDevice
from parallel.instrument.ledger import Ledger
from parallel.kernels.linear import Linear
from parallel.layout.degrees import Degrees
from parallel.models.transformer import Transformer
from parallel.sharding.builder import LayerBuilder
from parallel.sharding.loader import ShardReader
from parallel.sharding.weights import Weights
from tests.checkpoints import CONFIGS, SMALL, make_checkpoint
from tests.engine_case import plan_for

PACKS = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
    torch.testing.assert_close(made(x), F.linear(x, weight, bias), rtol=0, atol=0)
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


def test_a_packed_rank_holds_what_the_plan_says(tmp_path: Path) -> None:
    CONFIGS["packable"] = (
        "Qwen2",
        {**SMALL, "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2},
    )
    path = make_checkpoint("packable", tmp_path, "bfloat16")
    device = CpuDevice()
    plan = plan_for(str(path), Degrees())
    weights = Weights(plan.layout, 0, torch.bfloat16, device)
    builder = LayerBuilder(weights, Communicator("tp", (0,), 0, None, Ledger(), device))
    Transformer(builder)
    ShardReader().fill(weights.targets, lambda _: None)
    before = len(weights.tensors)
    builder.pack()
    assert weights.bytes == plan.memory[0].weights
    assert weights.targets == []
    if PACKS:
        assert len(weights.tensors) == before - 4 * plan.layout.spec.layers
