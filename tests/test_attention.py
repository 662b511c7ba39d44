"""Paged attention and rotary embedding against plain references in float64.

Shapes: N tokens of a whole sequence, H query and K KV heads of a rank, d head dim."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from parallel.architecture.rotary import inverse_frequencies, read_rotary
from parallel.architecture.spec import Attention, Norm, Rotary
from parallel.devices.cpu import CpuDevice
from parallel.kernels.attention import PagedAttention
from parallel.kernels.cache import KVCache, LayerCache
from parallel.kernels.elementwise import ACTIVATIONS, Normalization
from parallel.kernels.rotary import RotaryEmbedding
from parallel.kernels.step import StepInput
from parallel.layout.degrees import Degrees
from parallel.layout.heads import RankHeads, head_map
from parallel.layout.layout import Layout
from tests.specs import small_spec

CPU = torch.device("cpu")
BLOCK_TOKENS = 4
BLOCKS = 64
DIM = 8


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are computed sooner by one thread than by several that wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: RankHeads, a: Attention
) -> torch.Tensor:
    """query [N, H, d], key and value [N, K, d] → [N, H, d], one head at a time."""
    length = query.shape[0]
    rows, columns = torch.arange(length)[:, None], torch.arange(length)[None, :]
    hidden = columns > rows
    if a.window is not None:
        hidden |= columns <= rows - a.window
    out = torch.empty_like(query)
    for h, k in enumerate(heads.kv_of_query):
        scores = a.scale * query[:, h] @ key[:, k].T
        shares = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        out[:, h] = shares @ value[:, k]
    return out


@dataclass
class Course:
    """A sequence of known queries, keys and values that is computed chunk by chunk."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    blocks: list[int]
    done: int = 0
    found: list[torch.Tensor] = field(default_factory=list)

    @property
    def left(self) -> int:
        return self.query.shape[0] - self.done


def step_of(chunks: list[tuple[Course, int]]) -> StepInput:
    """The step that computes `count` tokens of each course, as runtime/inputs.py makes it."""
    positions, slots, tables, starts, contexts = [], [], [], [0], []
    for course, count in chunks:
        end = course.done + count
        span = range(course.done, end)
        positions += span
        slots += [course.blocks[p // BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS for p in span]
        tables.append(course.blocks[: -(-end // BLOCK_TOKENS)])
        starts.append(starts[-1] + count)
        contexts.append(end)
    width = max(map(len, tables))
    return StepInput(
        token_ids=torch.zeros(starts[-1], dtype=torch.int64),
        positions=torch.tensor(positions),
        slots=torch.tensor(slots),
        block_tables=torch.tensor([t + [0] * (width - len(t)) for t in tables]),
        context_lengths=torch.tensor(contexts),
        logit_rows=torch.tensor([s - 1 for s in starts[1:]]),
        query_starts=tuple(starts),
        context_tokens=tuple(contexts),
        decodes=sum(1 for _, count in chunks if count == 1),
    )


def courses(
    heads: RankHeads, lengths: list[int], generator: torch.Generator, shuffle: random.Random
) -> list[Course]:
    """Random contents in blocks that are dealt out of order."""
    free = list(range(BLOCKS))
    shuffle.shuffle(free)
    out = []
    for n in lengths:
        q = torch.randn(n, len(heads.queries), DIM, generator=generator, dtype=torch.float64)
        k, v = (
            torch.randn(n, len(heads.kv), DIM, generator=generator, dtype=torch.float64)
            for _ in range(2)
        )
        out.append(Course(q, k, v, [free.pop() for _ in range(-(-n // BLOCK_TOKENS))]))
    return out


def run(attention: Attention, heads: RankHeads, lengths: list[int], chunk: int, seed: int) -> None:
    """All courses side by side, in random chunks of up to `chunk` tokens, some steps left out."""
    shuffle = random.Random(seed)
    running = courses(heads, lengths, torch.Generator().manual_seed(seed), shuffle)
    paged = PagedAttention(attention, heads, CPU)
    shape = (BLOCKS, BLOCK_TOKENS, len(heads.kv), DIM)
    cache = LayerCache(*(torch.full(shape, 1e3, dtype=torch.float64) for _ in range(2)))
    everything = list(running)
    while running:
        chosen = shuffle.sample(running, shuffle.randint(1, len(running)))
        chunks = [(c, min(c.left, shuffle.randint(1, chunk))) for c in chosen]
        chunks.sort(key=lambda pair: pair[1] > 1)
        step = step_of(chunks)
        parts = [
            torch.cat([whole(c)[c.done : c.done + n] for c, n in chunks])
            for whole in (lambda c: c.query, lambda c: c.key, lambda c: c.value)
        ]
        out = paged(*parts, cache, step)
        assert out.shape == parts[0].shape
        for i, (course, count) in enumerate(chunks):
            course.found.append(out[step.query_starts[i] : step.query_starts[i + 1]])
            course.done += count
        running = [c for c in running if c.left]
    for course in everything:
        expected = dense(course.query, course.key, course.value, heads, attention)
        torch.testing.assert_close(torch.cat(course.found), expected, rtol=1e-9, atol=1e-9)


def attention_of(heads: int, kv_heads: int, window: int | None = None) -> Attention:
    return Attention(heads, kv_heads, DIM, scale=DIM**-0.5, window=window)


MAPS = [
    (1, 1, 1, "auto", 0),
    (4, 4, 2, "auto", 1),
    (6, 2, 1, "auto", 0),
    (8, 2, 4, "auto", 3),
    (9, 3, 2, "replicate", 0),
    (9, 3, 2, "replicate", 1),
    (9, 3, 4, "replicate", 1),
    (25, 5, 3, "replicate", 2),
    (9, 3, 2, "groups", 0),
]


@pytest.mark.parametrize("window", [None, 1, 3, 7])
@pytest.mark.parametrize("case", MAPS, ids=str)
def test_any_chunks_of_any_batch(case: tuple[int, int, int, str, int], window: int | None) -> None:
    heads, kv_heads, tp, choice, rank = case
    local = head_map(heads, kv_heads, tp, choice)[rank]
    attention = attention_of(heads, kv_heads, window)
    for seed in range(2):
        run(attention, local, [21, 1, 13, 4, 9], chunk=6, seed=seed)


@pytest.mark.parametrize("window", [None, 5])
def test_heads_repeated_for_kernels_that_need_it(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parallel.kernels.attention.repeats_heads", lambda device: True)
    for heads, kv_heads, tp, choice, rank in MAPS:
        local = head_map(heads, kv_heads, tp, choice)[rank]
        run(attention_of(heads, kv_heads, window), local, [21, 13], chunk=6, seed=1)


@pytest.mark.parametrize("window", [None, 5])
def test_decodes_alone(window: int | None) -> None:
    """One token at a time from the first on: contexts of different lengths in one batch."""
    local = head_map(9, 3, 2, "replicate")[0]
    assert not local.uniform
    run(attention_of(9, 3, window), local, [30, 2, 17, 8], chunk=1, seed=0)
    run(attention_of(9, 3, window), local, [19], chunk=1, seed=0)


@pytest.mark.parametrize("window", [None, 5])
def test_decodes_gather_no_more_than_the_plan_counts(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = []
    read = LayerCache.read

    def counting(self: LayerCache, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gathered.append(blocks.numel() * BLOCK_TOKENS)
        return read(self, blocks)

    monkeypatch.setattr(LayerCache, "read", counting)
    monkeypatch.setattr("parallel.kernels.attention.GATHER_TOKENS", 2 * 32 + 1)
    local = head_map(9, 3, 2, "replicate")[1]
    run(attention_of(9, 3, window), local, [30, 31, 2, 17, 28], chunk=1, seed=3)
    assert 32 < max(gathered) <= 64


@pytest.mark.parametrize("window", [None, 5])
def test_whole_prompts(window: int | None) -> None:
    for local in head_map(6, 2, 2):
        run(attention_of(6, 2, window), local, [40, 40, 3], chunk=40, seed=1)


def test_padded_heads_compute_the_same() -> None:
    """The queries that are real come out as without padding, whatever the padding holds."""
    attention = attention_of(9, 3)
    for rank in range(2):
        real = head_map(9, 3, 2, "replicate")[rank]
        padded = head_map(9, 3, 2, "padded")[rank]
        assert padded.uniform
        generator = torch.Generator().manual_seed(rank)
        course = courses(real, [11], generator, random.Random(0))[0]
        step = step_of([(course, 11)])
        grid = torch.zeros(11, len(padded.queries), DIM, dtype=torch.float64)
        places = [i for i, q in enumerate(padded.queries) if q >= 0]
        grid[:, places] = course.query
        outs = []
        for heads, query in ((real, course.query), (padded, grid)):
            shape = (BLOCKS, BLOCK_TOKENS, len(heads.kv), DIM)
            cache = LayerCache(*(torch.zeros(shape, dtype=torch.float64) for _ in range(2)))
            outs.append(
                PagedAttention(attention, heads, CPU)(query, course.key, course.value, cache, step)
            )
        torch.testing.assert_close(outs[1][:, places], outs[0])


def test_layers_with_different_windows_share_a_step() -> None:
    """Masks are made once per step, and not taken for another window's."""
    local = head_map(2, 1, 1)[0]
    both = courses(local, [9, 12], torch.Generator().manual_seed(0), random.Random(0))
    shape = (BLOCKS, BLOCK_TOKENS, 1, DIM)
    windows = (None, 2, 4)
    caches = [
        LayerCache(*(torch.zeros(shape, dtype=torch.float64) for _ in range(2))) for _ in windows
    ]
    for counts in ((8, 11), (1, 1)):
        chunks = list(zip(both, counts, strict=True))
        step = step_of(chunks)
        parts = [
            torch.cat([x[c.done : c.done + n] for (c, n), x in zip(chunks, xs, strict=True)])
            for xs in zip(*((c.query, c.key, c.value) for c, _ in chunks), strict=True)
        ]
        for window, cache in zip(windows, caches, strict=True):
            attention = attention_of(2, 1, window)
            out = PagedAttention(attention, local, CPU)(*parts, cache, step)
            for i, (c, n) in enumerate(chunks):
                expected = dense(c.query, c.key, c.value, local, attention)
                rows = out[step.query_starts[i] : step.query_starts[i + 1]]
                torch.testing.assert_close(rows, expected[c.done : c.done + n])
        for course, count in chunks:
            course.done += count


# ---------------------------------------------------------------------------- cache


@pytest.mark.parametrize("degrees", [Degrees(), Degrees(tp=2), Degrees(tp=3, pp=2)], ids=str)
def test_cache_takes_what_the_layout_says(degrees: Degrees) -> None:
    layout = Layout.make(small_spec(num_attention_heads=9, num_key_value_heads=3), degrees)
    for rank in range(degrees.world_size):
        cache = KVCache.allocate(layout, rank, 5, 16, torch.bfloat16, CpuDevice())
        assert list(cache.layers) == list(layout.stage(rank).layers)
        assert cache.bytes == 5 * 16 * 2 * layout.kv_elements_per_token(rank)
        assert all(not c.key.any() and not c.value.any() for c in cache.layers.values())


# ---------------------------------------------------------------------------- rotary


def positions_step(positions: list[int]) -> StepInput:
    none = torch.zeros(0, dtype=torch.int64)
    at = torch.tensor(positions)
    return StepInput(none, at, none, none, none, none, (0, len(positions)), (), 0)


@pytest.mark.parametrize("dim", [DIM, DIM // 2])
def test_rotation_by_angle(dim: int) -> None:
    """Channels i and i + dim/2 are one complex number, turned by position × frequency."""
    rotary, positions = Rotary(10000.0, dim), [0, 1, 5, 4000]
    x = torch.randn(4, 3, DIM, generator=torch.Generator().manual_seed(0))
    out = RotaryEmbedding(rotary, CPU)(x, positions_step(positions))
    half = dim // 2
    number = torch.complex(x[..., :half].double(), x[..., half:dim].double())
    angles = torch.tensor(positions).double()[:, None] * torch.tensor(
        inverse_frequencies(rotary), dtype=torch.float64
    )
    turned = number * torch.polar(torch.ones_like(angles), angles)[:, None, :]
    expected = torch.cat((turned.real, turned.imag, x[..., dim:].double()), -1).float()
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(out[:3], expected[:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[0], x[0], rtol=0, atol=0)


def test_rotation_is_transformers_yarn() -> None:
    facts = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=4, max_position_embeddings=256, rope_parameters=facts
    )
    positions = [3, 0, 200, 77]
    x = torch.randn(4, 4, 8, generator=torch.Generator().manual_seed(0))
    turn = LlamaRotaryEmbedding(config)
    cos, sin = turn(x, torch.tensor([positions]))
    theirs, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos, sin)
    rotary = read_rotary(config.to_dict(), 8, 256)
    ours = RotaryEmbedding(rotary, CPU)(x, positions_step(positions))
    torch.testing.assert_close(ours, theirs[0].transpose(0, 1), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------- norms, activations


def test_norms() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, 6, generator=generator) for s in (4, 1, 1))
    rms = Normalization(Norm("rms", 0.1), weight[0], None)(x)
    torch.testing.assert_close(rms, x / (x.pow(2).mean(-1, True) + 0.1).sqrt() * weight)
    layer = Normalization(Norm("layer", 0.1), weight[0], bias[0])(x)
    centred = x - x.mean(-1, True)
    spread = (centred.pow(2).mean(-1, True) + 0.1).sqrt()
    torch.testing.assert_close(layer, centred / spread * weight + bias)


def test_activations() -> None:
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    tanh = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    expected = {
        "silu": x / (1 + torch.exp(-x)),
        "gelu": x * normal.cdf(x),
        "gelu_tanh": tanh,
        "relu": x.clamp(min=0),
    }
    assert set(expected) == set(ACTIVATIONS)
    for name, values in expected.items():
        torch.testing.assert_close(ACTIVATIONS[name](x), values, rtol=1e-6, atol=1e-6)
