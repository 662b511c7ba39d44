"""The native kernels of attention, norms, activations and rotary positions against float64.

Shapes: N tokens of a whole sequence, T tokens of a step, H query and K KV heads, d head dim."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.architecture.rotary import inverse_frequencies
from parallel.architecture.spec import Attention, Norm, Rotary, RotaryScaling
from parallel.devices.cpu import CpuDevice
from parallel.kernels.attention import PagedAttention
from parallel.kernels.attention_form import Wanted
from parallel.kernels.attention_native import NativeAttention, refuses
from parallel.kernels.cache import LayerCache
from parallel.kernels.elementwise import ACTIVATIONS
from parallel.kernels.elementwise_native import NativeActivation, NativeNormalization, NativeRotary
from parallel.kernels.step import StepInput
from parallel.layout.heads import RankHeads, head_map
from tests.test_attention import dense, positions_step

FORMATS = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
"""Formats and how far a result may be from the reference's, relative to values of about one."""


@pytest.fixture(scope="module")
def device() -> CpuDevice:
    return CpuDevice(native=True)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Two, so that work is shared and split."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Case:
    """Sequences of `lengths` tokens under `heads` of `dim` channels, in blocks of `page` tokens."""

    heads: RankHeads
    dim: int
    window: int | None
    page: int
    lengths: tuple[int, ...]
    dtype: torch.dtype
    seed: int

    @property
    def facts(self) -> Attention:
        return Attention(1, 1, self.dim, scale=self.dim**-0.5, window=self.window)

    def wanted(self, device: CpuDevice) -> Wanted:
        return Wanted(self.facts, self.heads, device, self.dtype, self.dtype, self.page)

    def tensors(self, length: int, index: int) -> tuple[torch.Tensor, ...]:
        """query, key and value [N, heads, d] of a sequence."""
        generator = torch.Generator().manual_seed(100 * self.seed + index)
        counts = (len(self.heads.queries), len(self.heads.kv), len(self.heads.kv))
        return tuple(
            torch.randn(length, n, self.dim, generator=generator).to(self.dtype) for n in counts
        )


def computed(case: Case, device: CpuDevice, alone: bool, shuffle: random.Random) -> torch.Tensor:
    """All sequences in random chunks, side by side or one after the other, [all tokens, H, d]."""
    pages = [-(-n // case.page) for n in case.lengths]
    numbers = list(range(sum(pages) + 3))
    shuffle.shuffle(numbers)
    tables = [[numbers.pop() for _ in range(n)] for n in pages]
    shape = (sum(pages) + 3, case.page, len(case.heads.kv), case.dim)
    # What was never written may be anything, and must not count.
    cache = LayerCache(*(torch.full(shape, torch.nan, dtype=case.dtype) for _ in range(2)))
    attend, done = NativeAttention(case.wanted(device)), [0] * len(pages)
    contents = [case.tensors(n, i) for i, n in enumerate(case.lengths)]
    outs = [torch.empty(n, len(case.heads.queries), case.dim) for n in case.lengths]
    while left := [i for i, n in enumerate(case.lengths) if done[i] < n]:
        chosen = left[:1] if alone else shuffle.sample(left, shuffle.randint(1, len(left)))
        most = [case.lengths[i] - done[i] for i in chosen]
        counts = [min(m, shuffle.choice((1, 3, 40, 700))) for m in most]
        order = sorted(zip(chosen, counts, strict=True), key=lambda pair: pair[1] > 1)
        step = step_of(case, tables, done, order)
        parts = [
            torch.cat([contents[i][part][done[i] : done[i] + n] for i, n in order])
            for part in range(3)
        ]
        # As views of one tensor, which is how the fused projection gives them.
        sizes = [x.shape[1] for x in parts]
        out = attend(*torch.cat(parts, dim=1).split(sizes, dim=1), cache, step)
        for place, (i, n) in enumerate(order):
            begin = step.query_starts[place]
            outs[i][done[i] : done[i] + n] = out[begin : begin + n].float()
            done[i] += n
    return torch.cat(outs)


def step_of(
    case: Case, tables: list[list[int]], done: list[int], order: list[tuple[int, int]]
) -> StepInput:
    starts, slots, contexts = [0], [], []
    for i, n in order:
        span = range(done[i], done[i] + n)
        slots += [tables[i][p // case.page] * case.page + p % case.page for p in span]
        starts.append(starts[-1] + n)
        contexts.append(done[i] + n)
    width = max(len(tables[i]) for i, _ in order)
    return StepInput(
        token_ids=torch.zeros(0, dtype=torch.int64),
        positions=torch.zeros(0, dtype=torch.int64),
        slots=torch.tensor(slots),
        block_tables=torch.tensor([tables[i] + [0] * (width - len(tables[i])) for i, _ in order]),
        context_lengths=torch.tensor(contexts),
        logit_rows=torch.zeros(0, dtype=torch.int64),
        query_starts=tuple(starts),
        context_tokens=tuple(contexts),
        decodes=sum(1 for _, n in order if n == 1),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.sampled_from((1, 2, 3, 5)))
    tp = draw(st.integers(1, min(3, heads)))
    shares = head_map(heads, kv_heads, tp, draw(st.sampled_from(("auto", "replicate", "padded"))))
    return Case(
        heads=shares[draw(st.integers(0, tp - 1))],
        dim=draw(st.sampled_from((2, 6, 16, 40, 64, 128))),
        window=draw(st.sampled_from((None, None, 1, 5, 70, 600))),
        page=draw(st.sampled_from((1, 4, 16, 24))),
        lengths=tuple(
            draw(st.lists(st.sampled_from((1, 9, 64, 130, 530)), min_size=1, max_size=3))
        ),
        dtype=draw(st.sampled_from(tuple(FORMATS))),
        seed=draw(st.integers(0, 99)),
    )


@pytest.mark.usefixtures("tiles")
@settings(max_examples=40)
@given(case=cases())
def test_any_chunks_of_any_batch(case: Case) -> None:
    """Against plain attention in float64; and the same to the bit when each sequence is alone and
    cut into other chunks."""
    device = CpuDevice(native=True)
    found = computed(case, device, False, random.Random(case.seed))
    expected = torch.cat(
        [
            dense(*(x.double() for x in case.tensors(n, i)), case.heads, case.facts).float()
            for i, n in enumerate(case.lengths)
        ]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=FORMATS[case.dtype])
    assert torch.equal(found, computed(case, device, True, random.Random(case.seed + 1)))


@pytest.mark.usefixtures("tiles")
def test_long_contexts_are_shared_by_threads(device: CpuDevice) -> None:
    """One decode over many splits: as one thread computes it, and as the portable kernel does."""
    case = Case(head_map(9, 3, 1)[0], 64, None, 16, (2600,), torch.float32, 1)
    query, key, value = case.tensors(2600, 0)
    tables = [list(range(163))]
    cache = LayerCache(*(torch.zeros(163, 16, 3, 64) for _ in range(2)))
    for whole, kept in ((key, cache.key), (value, cache.value)):
        kept.view(-1, 3, 64)[:2599] = whole[:2599]
    step = step_of(case, tables, [2599], [(0, 1)])
    last = [x[2599:] for x in (query, key, value)]
    shared = NativeAttention(case.wanted(device))(*last, cache, step)
    torch.set_num_threads(1)
    assert torch.equal(shared, NativeAttention(case.wanted(device))(*last, cache, step))
    portable = PagedAttention(case.facts, case.heads, device.torch_device)
    torch.testing.assert_close(shared, portable(*last, cache, step), rtol=1e-5, atol=1e-6)


def test_other_formats_are_refused(device: CpuDevice) -> None:
    case = Case(head_map(1, 1, 1)[0], 8, None, 4, (1,), torch.float64, 0)
    assert "bf16" in str(refuses(case.wanted(device)))
    assert "engine.kernels" in str(refuses(case.wanted(CpuDevice())))


# ---------------------------------------------------------------------------- norms, activations


def rows(seed: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def normed(x: torch.Tensor, norm: Norm, weight: torch.Tensor, bias: torch.Tensor | None) -> object:
    x, weight = x.double(), weight.double()
    if norm.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    out = x / (x.pow(2).mean(-1, keepdim=True) + norm.epsilon).sqrt() * weight
    return (out if bias is None else out + bias.double()).float()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("width", [6, 16, 40, 576])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms(kind: str, width: int, dtype: torch.dtype, device: CpuDevice) -> None:
    norm, weight = Norm(kind, 1e-3), rows(1, dtype, width)
    bias = rows(2, dtype, width) if kind == "layer" else None
    native = NativeNormalization(norm, weight, bias)
    x, delta = rows(3, dtype, 37, width), rows(4, dtype, 37, width)
    close = {"rtol": 2 * FORMATS[dtype] / 3, "atol": FORMATS[dtype] / 3}
    torch.testing.assert_close(native(x).float(), normed(x, norm, weight, bias), **close)
    whole = x + delta
    found, total = native.add(x, delta)
    assert torch.equal(total, whole) and total is x
    torch.testing.assert_close(found.float(), normed(whole, norm, weight, bias), **close)
    alone = torch.cat([native(row) for row in whole.split(1)])
    assert torch.equal(found, alone)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_norms_of_heads(dtype: torch.dtype, device: CpuDevice) -> None:
    """A view of some heads of a fused projection."""
    norm, weight = Norm("rms", 1e-3), rows(1, dtype, 24)
    heads = rows(2, dtype, 5, 7, 24)[:, 1:4]
    found = NativeNormalization(norm, weight, None)(heads)
    torch.testing.assert_close(
        found.float(), normed(heads, norm, weight, None), rtol=FORMATS[dtype], atol=1e-5
    )


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, gated: bool, dtype: torch.dtype, device: CpuDevice) -> None:
    wide = 4 * rows(0, dtype, 9, 2 * 75)
    wide[0, :4] = torch.tensor([-90.0, 90.0, -1e4, 1e4])
    x = wide.double()
    left, right = x.chunk(2, dim=-1) if gated else (x, torch.ones_like(x))
    expected = (ACTIVATIONS[name](left) * right).float()
    found = NativeActivation(name, gated)(wide).float()
    torch.testing.assert_close(found, expected, rtol=FORMATS[dtype], atol=1e-5)


# ---------------------------------------------------------------------------- rotary


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("amplitude", [1.0, 1.25])
@pytest.mark.parametrize("dim", [8, 40, 64])
def test_rotation_by_angle(
    dim: int, amplitude: float, dtype: torch.dtype, device: CpuDevice
) -> None:
    """Channels i and i + dim/2 are one complex number, turned by position × frequency; the others
    stay, and so do the heads beside the view."""
    scaling = RotaryScaling("linear", 1.0, attention_factor=amplitude)
    rotary, positions = Rotary(10000.0, dim, scaling), [0, 1, 5, 700]
    heads = rows(0, dtype, 4, 5, 64)
    before = heads.clone()
    out = NativeRotary(rotary, device.torch_device)(heads[:, :3], positions_step(positions))
    assert out.data_ptr() == heads.data_ptr()
    assert torch.equal(heads[:, 3:], before[:, 3:])
    half, x = dim // 2, before[:, :3].double()
    angles = torch.tensor(positions).double()[:, None] * torch.tensor(
        inverse_frequencies(rotary), dtype=torch.float64
    )
    turn = torch.polar(torch.full_like(angles, amplitude), angles)[:, None, :]
    turned = torch.complex(x[..., :half], x[..., half:dim]) * turn
    expected = torch.cat((turned.real, turned.imag, x[..., dim:]), -1).float()
    tolerance = max(FORMATS[dtype], 3e-4)
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)
