"""Noise and sampling: a token is a function of logits, parameters, seed and position alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from parallel.errors import RequestError
from parallel.kernels.noise import gumbel, uniform
from parallel.kernels.sampling import Choice, Row, greedy, penalise, sample
from parallel.requests.types import Sampling
from tests.specs import small_spec  # noqa: F401  (its hypothesis settings)

WORD = 1 << 64
# Upper quantiles of chi-square at 1e-4, by degrees of freedom.
CHI_SQUARE = {3: 21.1, 7: 29.9, 15: 44.3}

GOLDEN_UNIFORM = [0.28176129772258507, 0.6524484863740322, 0.7012121095215252]
GOLDEN_FAR = [0.44075282805593596]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small are computed sooner by one thread than by several that wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def logits(seed: int, *shape: int) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens_at(position: int) -> list[int]:
    return [0] * position


def draws(row: torch.Tensor, sampling: Sampling, count: int) -> list[int]:
    """The tokens drawn from the same logits at `count` positions."""
    return [
        sample(row[None], [Row(sampling, tokens_at(position), position)])[0].token
        for position in range(1, count + 1)
    ]


def chi_square(observed: list[int], expected: list[float]) -> float:
    return sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))


# ---------------------------------------------------------------------------- noise


def mix(word: int) -> int:
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def plain_uniform(seed: int, position: int, token: int) -> float:
    """The same function in Python's unbounded integers."""
    golden = 0x9E3779B97F4A7C15
    key = mix((mix(seed % WORD) + golden * (position + 1)) % WORD)
    return ((mix((token * golden + key) % WORD) >> 12) + 0.5) / 2**52


@given(
    st.integers(-(2**63), 2**64 - 1),
    st.integers(0, 2**31),
    st.lists(st.integers(0, 2**31), min_size=1, max_size=5),
)
def test_noise_is_the_published_function(seed: int, position: int, ids: list[int]) -> None:
    found = uniform(seed, position, torch.tensor(ids))
    assert found.tolist() == [plain_uniform(seed, position, i) for i in ids]
    assert all(0 < u < 1 for u in found.tolist())


def test_noise_never_changes() -> None:
    """Published seeds must give the same tokens in every release."""
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF, "splitmix64's first output for seed 0"
    assert uniform(0, 0, torch.tensor([0, 1, 2])).tolist() == GOLDEN_UNIFORM
    assert uniform(1234, 77, torch.tensor([49151])).tolist() == GOLDEN_FAR
    assert gumbel(0, 0, torch.tensor([0])).item() == pytest.approx(
        -math.log(-math.log(GOLDEN_UNIFORM[0])), rel=1e-14
    )


@pytest.mark.parametrize("along", ["seed", "position", "token"])
def test_noise_is_uniform_along_each_argument(along: str) -> None:
    count, bins = 16000, 16
    if along == "token":
        values = uniform(5, 3, torch.arange(count)).tolist()
    elif along == "position":
        values = [plain_uniform(5, i, 3) for i in range(count)]
    else:
        values = [plain_uniform(i, 5, 3) for i in range(count)]
    assert len(set(values)) == count
    observed = Counter(int(v * bins) for v in values)
    expected = [count / bins] * bins
    assert chi_square([observed[b] for b in range(bins)], expected) < CHI_SQUARE[15]
    pairs = Counter((a < 0.5, b < 0.5) for a, b in zip(values[::2], values[1::2], strict=True))
    assert chi_square(list(pairs.values()), [count / 8] * 4) < CHI_SQUARE[3]


def test_noise_depends_on_each_argument() -> None:
    ids = torch.arange(64)
    base = uniform(1, 1, ids)
    assert torch.equal(base, uniform(1, 1, ids))
    assert torch.equal(base.flip(0), uniform(1, 1, ids.flip(0)))
    for other in (uniform(2, 1, ids), uniform(1, 2, ids), uniform(1, 1, ids + 64)):
        assert not (base == other).any()


# ---------------------------------------------------------------------------- draws


def test_greedy_takes_the_largest() -> None:
    x = logits(0, 5, 50)
    rows = [Row(Sampling(), tokens_at(3), 3)] * 5
    assert [c.token for c in sample(x, rows)] == x.argmax(-1).tolist()
    assert all(c == Choice(c.token) for c in sample(x, rows))


@given(st.integers(1, 5), st.integers(1, 1600), st.integers(1, 4), st.integers(0, 99))
def test_greedy_takes_the_first_maximum(rows: int, width: int, values: int, seed: int) -> None:
    """Few different values: maxima come again in other pieces and behind the last whole one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(values, (rows, width), generator=generator).float()
    expected = [row.index(max(row)) for row in x.tolist()]
    assert greedy(x).tolist() == expected


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    x, count = logits(1, 8), 3000
    found = Counter(draws(x, Sampling(temperature=temperature, seed=11), count))
    expected = (count * torch.softmax(x.double() / temperature, -1)).tolist()
    assert chi_square([found[i] for i in range(8)], expected) < CHI_SQUARE[7]


@pytest.mark.parametrize(
    ("sampling", "warper"),
    [
        (Sampling(temperature=1, top_k=3), TopKLogitsWarper(3)),
        (Sampling(temperature=1, top_k=500), TopKLogitsWarper(500)),
        (Sampling(temperature=1, top_p=0.7), TopPLogitsWarper(0.7)),
        (Sampling(temperature=1, top_p=0.001), TopPLogitsWarper(0.001)),
    ],
)
def test_restricted_draws_follow_transformers(sampling: Sampling, warper: LogitsProcessor) -> None:
    count = 1500
    for seed in range(3):
        x = logits(seed, 8)
        share = torch.softmax(warper(None, x[None])[0].double(), -1).tolist()
        found = Counter(draws(x, sampling, count))
        legal = [i for i in range(8) if share[i] > 0]
        assert set(found) <= set(legal)
        expected = [count * share[i] for i in legal]
        assert chi_square([found[i] for i in legal], expected) < CHI_SQUARE[7]


def test_top_p_works_on_what_top_k_left() -> None:
    x = torch.log(torch.tensor([0.05, 0.4, 0.3, 0.25]))
    found = set(draws(x, Sampling(temperature=1, top_k=2, top_p=0.57), 200))
    assert found == {1}, "0.4 of 0.7 is more than 0.57"
    found = set(draws(x, Sampling(temperature=1, top_k=3, top_p=0.57), 200))
    assert found == {1, 2}


@pytest.mark.parametrize("change", [{"top_k": 40}, {"top_k": 99}, {"top_p": 0.99999}], ids=str)
def test_restrictions_that_keep_everything_change_nothing(change: dict[str, float]) -> None:
    for seed in range(50):
        x = logits(seed, 1, 40) / 4
        free = Sampling(temperature=1.3, seed=seed)
        row = Row(free, tokens_at(4), 4)
        kept = Row(replace(free, **change), tokens_at(4), 4)  # type: ignore[arg-type]
        assert sample(x, [row]) == sample(x, [kept])
    even = torch.zeros(3)
    assert set(draws(even, Sampling(temperature=1, top_p=0.99), 99)) == {0, 1, 2}


ANY = st.builds(
    Sampling,
    temperature=st.sampled_from((0.0, 0.3, 1.0, 5.0)),
    top_k=st.sampled_from((0, 1, 5, 1000)),
    top_p=st.sampled_from((1.0, 0.9, 0.2)),
    repetition_penalty=st.sampled_from((1.0, 1.4)),
    presence_penalty=st.sampled_from((0.0, 0.7)),
    frequency_penalty=st.sampled_from((0.0, -0.3)),
    seed=st.integers(-(2**63), 2**63 - 1),
    logprobs=st.sampled_from((None, 0, 3)),
)


@given(st.lists(st.tuples(ANY, st.integers(1, 9)), min_size=1, max_size=5), st.integers(0, 99))
def test_a_token_is_the_same_in_every_batch(asked: list[tuple[Sampling, int]], seed: int) -> None:
    x = logits(seed, len(asked), 30)
    generator = torch.Generator().manual_seed(seed)
    rows = [
        Row(s, torch.randint(0, 30, (n,), generator=generator).tolist(), n // 2) for s, n in asked
    ]
    together = sample(x, rows)
    assert together == [sample(x[i : i + 1], [row])[0] for i, row in enumerate(rows)]
    backwards = sample(x.flip(0), rows[::-1])
    assert together == backwards[::-1]


# ---------------------------------------------------------------------------- penalties


def test_repetition_penalty_is_transformers() -> None:
    for seed in range(5):
        x = logits(seed, 20)
        tokens = torch.randint(0, 20, (9,), generator=torch.Generator().manual_seed(seed))
        for penalty in (0.7, 1.3):
            theirs = RepetitionPenaltyLogitsProcessor(penalty)(tokens[None], x[None].clone())[0]
            row = Row(Sampling(repetition_penalty=penalty), tokens.tolist(), 4)
            before = x.clone()
            torch.testing.assert_close(penalise(x, row), theirs, rtol=1e-6, atol=0)
            assert torch.equal(x, before)


def test_presence_and_frequency_count_generated_tokens() -> None:
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    x = torch.zeros(6)
    row = Row(sampling, [0, 0, 1, 2, 3, 3, 3, 1], prompt=4)
    assert penalise(x, row).tolist() == [0, -0.75, 0, -1.25, 0, 0]
    assert penalise(x, replace(row, prompt=8)).tolist() == [0] * 6
    greedy = sample(torch.tensor([[0.0, 1.0, 0.9, 1.5, 0.0, 0.0]]), [row])
    assert greedy[0].token == 2


def test_penalties_add_up() -> None:
    x = logits(3, 10)
    tokens, generated = [1, 2, 2, 5, 5, 5], Counter([2, 5, 5, 5])
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=-1.0, frequency_penalty=0.5)
    expected = []
    for i, value in enumerate(x.tolist()):
        if i in tokens:
            value = value / 2 if value > 0 else value * 2
        if i in generated:
            value -= -1.0 + 0.5 * generated[i]
        expected.append(value)
    found = penalise(x, Row(sampling, tokens, 2)).tolist()
    assert found == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------------------- log-probabilities


def test_logprobs_are_the_models_own() -> None:
    """Neither temperature nor penalties nor restrictions show in them."""
    x = logits(4, 1, 30)
    expected = torch.log_softmax(x[0].double(), -1)
    sampling = Sampling(
        temperature=3.0, top_k=20, repetition_penalty=1.5, frequency_penalty=1.0, logprobs=4
    )
    choice = sample(x, [Row(sampling, [1, 2, 3], 1)])[0]
    assert choice.logprob == pytest.approx(expected[choice.token].item(), abs=1e-5)
    best = expected.topk(4)
    assert [t for t, _ in choice.top] == best.indices.tolist()
    assert [p for _, p in choice.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    chosen_alone = sample(x, [Row(replace(sampling, logprobs=0), [1, 2, 3], 1)])[0]
    assert chosen_alone == Choice(choice.token, choice.logprob)
    few = sample(x[:, :3], [Row(Sampling(logprobs=20), [1], 1)])[0]
    assert len(few.top) == 3 and few.top[0] == (few.token, few.logprob)


# ---------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("logprobs", 21),
    ],
)
def test_parameters_out_of_range(name: str, value: float) -> None:
    with pytest.raises(RequestError, match=f"{name}={value} is out of range; give") as caught:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert caught.value.param == name


@given(ANY)
def test_parameters_survive_the_wire(sampling: Sampling) -> None:
    assert Sampling.from_wire({**sampling.to_wire(), "unknown": 1}) == sampling
