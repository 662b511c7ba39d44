"""A KV cache in eight bits: closed-form bounds of its error, its bytes, what models make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cache_accuracy import difference, logits_of
from parallel.devices.cpu import CpuDevice
from parallel.errors import ConfigError
from parallel.kernels.block_moves import BlockMover, BlockMoves
from parallel.kernels.cache import KVCache
from parallel.kernels.cache_formats import dequantise, quantise
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.formats import choose_formats
from parallel.planner.memory import kv_bytes_per_token
from tests.checkpoints import make_checkpoint
from tests.specs import small_spec

DIM = 16
FORMATS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST = {"int8": 127, "fp8": 448}
FLOAT32 = 2.0**-20
"""More than float32 adds to the few operations here, relative to the largest number."""


def random_vectors(seed: int, exponent: float, dtype: torch.dtype) -> torch.Tensor:
    """[8, 3, DIM] of all signs, within a vector over five orders of magnitude; some are zero."""
    draw = torch.Generator().manual_seed(seed)
    size = torch.rand(8, 3, DIM, generator=draw) * 5 - 5
    numbers = torch.randn(8, 3, DIM, generator=draw) * 10 ** (size + exponent)
    return (numbers * (torch.rand(8, 3, 1, generator=draw) > 0.1)).to(dtype)


def bound(name: str, x: torch.Tensor) -> torch.Tensor:
    """Of |x' - x|, from x alone. The scale is largest / 127 or / 448, in bfloat16: up to 2⁻⁸ off.
    int8: half a step. fp8: half a unit of a three-bit mantissa, or of the smallest step there is;
    what lies above its largest number is cut to it, which the mantissa's error covers."""
    scale = x.abs().amax(-1, keepdim=True) / LARGEST[name] * (1 + 2.0**-8)
    if name == "int8":
        return scale / 2
    return torch.maximum(x.abs() / 16, scale * 2.0**-10)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(-20, 20), st.sampled_from(sorted(FORMATS)))
def test_the_error_is_within_half_a_step(seed: int, exponent: float, name: str) -> None:
    x = random_vectors(seed, exponent, torch.float32)
    stored, scales = quantise(x, FORMATS[name])
    found = dequantise(stored, scales, torch.float32)
    room = bound(name, x) + x.abs().amax(-1, keepdim=True) * FLOAT32
    assert stored.dtype is FORMATS[name] and scales.shape == x.shape[:-1]
    assert bool(((found - x).abs() <= room).all())
    assert bool((found[x == 0] == 0).all())


@pytest.mark.parametrize("name", FORMATS)
def test_in_bf16_its_own_rounding_is_added(name: str) -> None:
    x = random_vectors(5, 0.0, torch.bfloat16)
    found = dequantise(*quantise(x, FORMATS[name]), torch.bfloat16)
    assert found.dtype is torch.bfloat16
    exact = bound(name, x.float())
    error = (found.float() - x.float()).abs()
    assert bool((error <= exact + (x.float().abs() + exact) * 2.0**-8).all())
    # It is no copy: the bound is used to more than half.
    assert float((error / exact.clamp(min=1e-30)).max()) > 0.5


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_read_is_what_was_written(name: str, compute: torch.dtype) -> None:
    layout = Layout.make(small_spec(), Degrees())
    cache = KVCache.allocate(layout, 0, 6, 4, FORMATS[name], CpuDevice(), compute)
    layer = cache.layers[0]
    heads, dim = layer.key.shape[2:]
    draw = torch.Generator().manual_seed(3)
    key, value = (torch.randn(7, heads, dim, generator=draw).to(compute) for _ in range(2))
    # Blocks 4 and 2, the second one in part.
    slots = torch.tensor([16, 17, 18, 19, 8, 9, 10])
    layer.write(slots, key, value)
    mover = BlockMover(cache, 2, CpuDevice())
    mover.run(BlockMoves(copies=((2, 0),)))
    mover.run(BlockMoves(out=((4, 1),)))
    mover.run(BlockMoves(back=((5, 1),)))
    for table in ([4, 2], [5, 0]):  # as it was, then the copies, scales and all
        found = layer.read(torch.tensor([table]))
        for got, new in zip(found, (key, value), strict=True):
            expected = dequantise(*quantise(new, FORMATS[name]), compute)
            assert got.dtype is compute
            assert torch.equal(got[0, :, :7], expected.transpose(0, 1))


@pytest.mark.parametrize("degrees", [Degrees(), Degrees(tp=2), Degrees(tp=3, pp=2)], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_the_cache_takes_what_the_planner_says(name: str, degrees: Degrees) -> None:
    layout = Layout.make(small_spec(num_attention_heads=9, num_key_value_heads=3), degrees)
    formats = choose_formats(layout.spec, cache=name)
    for rank in range(degrees.world_size):
        cache = KVCache.allocate(layout, rank, 5, 16, FORMATS[name], CpuDevice())
        assert cache.bytes == 5 * 16 * kv_bytes_per_token(layout, rank, formats)
        vectors = layout.kv_vectors_per_token(rank)
        assert cache.bytes == 5 * 16 * (layout.kv_elements_per_token(rank) + 2 * vectors)
        assert BlockMover(cache, 2, CpuDevice()).pool_bytes * 5 == 2 * cache.bytes


def test_formats_of_the_cache_are_its_own() -> None:
    spec = small_spec()
    assert choose_formats(spec, "bf16", cache="int8").to_json()["kv_cache"] == "int8"
    with pytest.raises(ConfigError, match=r"kv_cache 'int9'; did you mean 'int8'.*fp16, int8, fp8"):
        choose_formats(spec, cache="int9")
    with pytest.raises(ConfigError, match="unknown precision 'int8'"):
        choose_formats(spec, "int8")


@pytest.mark.parametrize(("name", "largest", "kept"), [("int8", 0.1, 0.95), ("fp8", 0.5, 0.85)])
def test_logits_stay_near_those_of_a_whole_cache(
    name: str, largest: float, kept: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A small model of random weights in fp32. As large an error as the bounds allow everywhere
    would give more; without scales, or with rows mixed up, tokens wouldn't stay."""
    model = make_checkpoint("qwen3", tmp_path_factory.getbasetemp())
    draw = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, 90, (n,), generator=draw).tolist() for n in (5, 12, 23, 31)]
    reference, tokens = logits_of(Path(model), "fp32", None, prompts, 12)
    again, _ = logits_of(Path(model), "fp32", "fp32", prompts, 12, tokens)
    assert torch.equal(again, reference)
    found, _ = logits_of(Path(model), "fp32", name, prompts, 12, tokens)
    d = difference(reference, found)
    spread = reference.std().item()
    print(f"{name}: {d} of logits that spread by {spread:.2f}")
    assert d.tokens == 48 and d.agreement >= kept
    assert 0 < d.largest <= largest * spread and d.divergence > 0
