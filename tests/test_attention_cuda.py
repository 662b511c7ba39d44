"""Attention on CUDA, as far as it can be known without a GPU: stand-ins with the signatures and the
documented meaning of the kernels' own functions compute in float64 what they are asked for."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import BlockMask

from parallel.devices.cpu import CpuDevice
from parallel.devices.fake import FakeCudaDevice
from parallel.errors import ConfigError
from parallel.kernels import attention_cuda_flash as flash
from parallel.kernels import attention_cuda_flashinfer as flashinfer
from parallel.kernels.attention import AttentionBackend
from parallel.kernels.attention_choice import FORMS, choose_attention
from parallel.kernels.attention_cuda import Paged
from parallel.kernels.attention_cuda_flash import Flash2, Flash3, FlashAttention
from parallel.kernels.attention_cuda_flashinfer import FlashInferAttention
from parallel.kernels.attention_cuda_flex import FlexAttention
from parallel.kernels.attention_cuda_varlen import VarlenAttention
from parallel.kernels.attention_form import Wanted
from parallel.kernels.cache import LayerCache
from parallel.kernels.step import StepInput
from parallel.layout.heads import head_map
from parallel.planner.memory import FLASHINFER_BYTES
from tests.cuda_kernels import (
    Flash2Module,
    Flash3Module,
    FlashInferModule,
    varlen_attn,
    varlen_attn_211,
)
from tests.test_attention import (
    BLOCK_TOKENS,
    BLOCKS,
    DIM,
    MAPS,
    Course,
    attention_of,
    courses,
    dense,
    step_of,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are computed sooner by one thread than by several that wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


Make = Callable[[Wanted], AttentionBackend]
KERNELS: dict[str, Make] = {
    "flash_attn 2": lambda wanted: FlashAttention(wanted, Flash2(Flash2Module())),
    "flash_attn 3": lambda wanted: FlashAttention(wanted, Flash3(Flash3Module())),
    "flashinfer": lambda wanted: FlashInferAttention(wanted, FlashInferModule()),
    "varlen": lambda wanted: VarlenAttention(wanted, varlen_attn),
    "varlen of 2.11": lambda wanted: VarlenAttention(wanted, varlen_attn_211),
    "flex": lambda wanted: FlexAttention(wanted, varlen_attn),
}
H100 = (9, 0)


def wanted_of(
    case: tuple[int, int, int, str, int], window: int | None, dtype: torch.dtype = torch.float64
) -> Wanted:
    heads, kv_heads, tp, choice, rank = case
    local = head_map(heads, kv_heads, tp, choice)[rank]
    facts = attention_of(heads, kv_heads, window)
    return Wanted(facts, local, CpuDevice(), dtype, dtype, BLOCK_TOKENS)


def run(make: Make, wanted: Wanted, lengths: list[int], chunk: int, seed: int) -> None:
    """All sequences side by side, in random chunks of up to `chunk` tokens, some steps left out."""
    shuffle = random.Random(seed)
    running = courses(wanted.heads, lengths, torch.Generator().manual_seed(seed), shuffle)
    attention, everything = make(wanted), list(running)
    shape = (BLOCKS, BLOCK_TOKENS, len(wanted.heads.kv), DIM)
    cache = LayerCache(*(torch.full(shape, 1e3, dtype=torch.float64) for _ in range(2)))
    while running:
        chosen = shuffle.sample(running, shuffle.randint(1, len(running)))
        chunks = [(c, min(c.left, shuffle.randint(1, chunk))) for c in chosen]
        chunks.sort(key=lambda pair: pair[1] > 1)
        compute(attention, cache, chunks)
        running = [c for c in running if c.left]
    for course in everything:
        expected = dense(course.query, course.key, course.value, wanted.heads, wanted.facts)
        torch.testing.assert_close(torch.cat(course.found), expected, rtol=1e-9, atol=1e-9)


def compute(
    attention: AttentionBackend, cache: LayerCache, chunks: list[tuple[Course, int]]
) -> None:
    """One step; queries, keys and values are views of one tensor, as in a model."""
    step = step_of(chunks)
    rows = [torch.cat((c.query, c.key, c.value), dim=1)[c.done : c.done + n] for c, n in chunks]
    kv = cache.key.shape[2]
    whole = torch.cat(rows)
    out = attention(*whole.split([whole.shape[1] - 2 * kv, kv, kv], dim=1), cache, step)
    for i, (course, count) in enumerate(chunks):
        course.found.append(out[step.query_starts[i] : step.query_starts[i + 1]])
        course.done += count


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("name", KERNELS)
def test_any_chunks_of_any_batch(name: str, window: int | None) -> None:
    for case in MAPS:
        run(KERNELS[name], wanted_of(case, window), [21, 1, 13, 4, 9], chunk=6, seed=1)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("name", KERNELS)
def test_whole_prompts_and_then_decodes(name: str, window: int | None) -> None:
    case = (9, 3, 2, "replicate", 0)
    run(KERNELS[name], wanted_of(case, window), [40, 40, 3], chunk=40, seed=1)
    run(KERNELS[name], wanted_of(case, window), [19, 7], chunk=1, seed=0)


def test_prompts_of_a_step_take_one_call() -> None:
    calls = []

    def counting(*args: Any, enable_gqa: bool, **options: Any) -> torch.Tensor:
        calls.append(args[3].tolist())
        return varlen_attn(*args, enable_gqa=enable_gqa, **options)

    wanted = wanted_of((6, 2, 1, "auto", 0), None)
    four = courses(wanted.heads, [9, 4, 11, 6], torch.Generator().manual_seed(0), random.Random(0))
    shape = (BLOCKS, BLOCK_TOKENS, 2, DIM)
    cache = LayerCache(*(torch.zeros(shape, dtype=torch.float64) for _ in range(2)))
    attention = VarlenAttention(wanted, counting)
    compute(attention, cache, [(four[0], 5)])
    compute(attention, cache, list(zip(four, (4, 4, 11, 6), strict=True)))
    assert calls == [[0, 5], [0, 4], [0, 4, 15, 21]]


def test_stand_ins_have_the_signatures_of_what_is_installed() -> None:
    from torch.nn.attention import varlen

    ours, theirs = (inspect.signature(f).parameters for f in (varlen_attn, varlen.varlen_attn))
    assert {n: p.kind for n, p in ours.items()} == {n: p.kind for n, p in theirs.items()}
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}


# ---------------------------------------------------------------------------- flashinfer


def test_layers_of_one_shape_are_planned_once_a_step() -> None:
    module, device = FlashInferModule(), CpuDevice()
    wanted = [wanted_of((6, 2, 1, "auto", 0), window) for window in (None, None, 4)]
    layers = [
        FlashInferAttention(Wanted(w.facts, w.heads, device, *[torch.float64] * 2, 4), module)
        for w in wanted
    ]
    both = courses(wanted[0].heads, [9, 6], torch.Generator().manual_seed(0), random.Random(0))
    shape = (BLOCKS, BLOCK_TOKENS, 2, DIM)
    caches = [
        LayerCache(*(torch.zeros(shape, dtype=torch.float64) for _ in range(2))) for _ in "123"
    ]
    for counts in ((7, 4), (1, 1), (1, 1)):
        step = step_of(list(zip(both, counts, strict=True)))
        for layer, cache in zip(layers, caches, strict=True):
            query, key, value = (
                torch.cat([x[:n] for x, n in zip(xs, counts, strict=True)])
                for xs in zip(*((c.query, c.key, c.value) for c in both), strict=True)
            )
            layer(query, key, value, cache, step)
        for course, count in zip(both, counts, strict=True):
            course.done += count
    assert [w.plans for w in module.made] == [1, 1, 2, 2]
    assert len({w.workspace.data_ptr() for w in module.made}) == 1
    assert module.made[0].workspace.nbytes == FLASHINFER_BYTES
    assert all(w.tensor_cores for w in module.made[2:])


# ---------------------------------------------------------------------------- choice


def installed(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for where in (flash, flashinfer):
        monkeypatch.setattr(
            where, "find_spec", lambda name: ModuleSpec(name, None) if name in modules else None
        )


def on_gpu(
    capability: tuple[int, int] | None = H100,
    block_tokens: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    cache: torch.dtype | None = None,
    head_dim: int = 128,
) -> Wanted:
    facts = replace(attention_of(32, 8), head_dim=head_dim)
    device = FakeCudaDevice(capability=capability)
    return Wanted(facts, head_map(32, 8, 1)[0], device, dtype, cache or dtype, block_tokens)


@pytest.mark.parametrize(
    ("modules", "wanted", "form"),
    [
        ((), on_gpu(), "varlen"),
        (("flash_attn",), on_gpu(), "varlen"),
        (("flash_attn",), on_gpu(block_tokens=256), "flash_attn"),
        (("flash_attn_interface",), on_gpu(), "flash_attn"),
        (("flash_attn_interface",), on_gpu((8, 0)), "varlen"),
        (("flashinfer", "flash_attn"), on_gpu((8, 0)), "flashinfer"),
        (("flashinfer",), on_gpu(head_dim=96), "varlen"),
        (("flashinfer", "flash_attn_interface"), on_gpu(head_dim=100), "sdpa"),
        (("flashinfer", "flash_attn_interface"), on_gpu(dtype=torch.float32), "sdpa"),
        (("flashinfer", "flash_attn_interface"), on_gpu(cache=torch.int8), "sdpa"),
        (("flashinfer", "flash_attn_interface"), on_gpu((7, 5)), "sdpa"),
        (("flashinfer", "flash_attn_interface"), on_gpu(None), "sdpa"),
    ],
)
def test_the_best_form_that_can_be_had(
    modules: tuple[str, ...], wanted: Wanted, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, *modules)
    chosen, reason = choose_attention(wanted)
    assert chosen.name == form
    faster = [f.name for f in FORMS[: FORMS.index(chosen)] if f.name != "native"]
    assert all(f"{name}: " in reason for name in faster) and "None" not in reason


def test_a_form_that_cant_be_had_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "flash_attn")
    with pytest.raises(
        ConfigError, match=r"set engine\.block_tokens=256; legal here: auto, varlen"
    ):
        choose_attention(on_gpu(), "flash_attn")
    with pytest.raises(ConfigError, match="fp16 or bf16, not float32"):
        choose_attention(on_gpu(dtype=torch.float32), "flash_attn")
    with pytest.raises(ConfigError, match=r"powers of two from 16 on"):
        choose_attention(on_gpu(block_tokens=24), "flex")
    with pytest.raises(ConfigError, match="unknown; did you mean 'flashinfer'"):
        choose_attention(on_gpu(), "flashinfr")
    with pytest.raises(ConfigError, match="it runs on CUDA alone"):
        choose_attention(wanted_of((6, 2, 1, "auto", 0), None, torch.bfloat16), "varlen")
    assert choose_attention(on_gpu(), "sdpa")[0].name == "sdpa"


def test_fake_tensors_take_the_same_way() -> None:
    """Shapes, devices and int32 tables of a step, on CUDA tensors without a GPU."""
    seen: dict[str, torch.Tensor] = {}

    class Module:
        def flash_attn_with_kvcache(self, q: torch.Tensor, *_: Any, **given: Any) -> torch.Tensor:
            seen.update(given)
            return torch.empty_like(q)

    wanted = on_gpu()
    with FakeTensorMode():
        device = wanted.device
        cache = LayerCache(*(device.empty((64, 16, 8, 128), torch.bfloat16) for _ in range(2)))
        numbers = [device.zeros((n,), torch.int64) for n in (9, 9, 9, 3, 3)]
        step = StepInput(
            *numbers[:3],
            block_tables=device.zeros((3, 4), torch.int64),
            context_lengths=numbers[3],
            logit_rows=numbers[4],
            query_starts=(0, 1, 2, 9),
            context_tokens=(30, 31, 40),
            decodes=2,
        )
        heads = [device.empty((9, n, 128), torch.bfloat16) for n in (32, 8, 8)]
        out = FlashAttention(wanted, Flash3(Module()))(*heads, cache, step)
    assert (tuple(out.shape), out.device.type, out.dtype) == ((9, 32, 128), "cuda", torch.bfloat16)
    assert seen["page_table"].dtype is torch.int32 and seen["cu_seqlens_q"].shape == (2,)


def test_flex_visits_the_blocks_of_each_sequence_alone() -> None:
    """Not compiled, FlexAttention goes by the mask alone; the lists of blocks are what its kernel
    visits."""
    seen = []

    class Listing(FlexAttention):
        def _blocks_seen(self, paged: Paged, cache: LayerCache) -> BlockMask:
            seen.append(super()._blocks_seen(paged, cache))
            return seen[-1]

    wanted = wanted_of((6, 2, 1, "auto", 0), 5)
    both = courses(wanted.heads, [9, 4], torch.Generator().manual_seed(0), random.Random(0))
    shape = (BLOCKS, BLOCK_TOKENS, 2, DIM)
    cache = LayerCache(*(torch.zeros(shape, dtype=torch.float64) for _ in range(2)))
    attention = Listing(wanted, varlen_attn)
    compute(attention, cache, [(both[0], 8), (both[1], 3)])
    compute(attention, cache, [(both[0], 1), (both[1], 1)])
    (mask,) = seen
    used = mask.kv_num_blocks.flatten().tolist()
    assert used == [3, 1] and mask.full_kv_num_blocks is None
    for row, course in enumerate(both):
        assert mask.kv_indices[row, 0, 0, : used[row]].tolist() == course.blocks[: used[row]]
    assert mask.BLOCK_SIZE[1] == BLOCK_TOKENS and mask.seq_lengths == (1, BLOCKS * BLOCK_TOKENS)
