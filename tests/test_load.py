"""The pure parts of the serving benchmark: loads, streams, percentiles, ratios."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.client import tokens_after
from benchmarks.load.jobs import (
    DECODE,
    MIXED,
    Answer,
    Job,
    Load,
    Served,
    incomplete,
    make_load,
)
from benchmarks.load.measured import Spread, decode_rate, percentile, ratio, summarise
from benchmarks.load.sse import EventParser
from benchmarks.load.systems import PEERS, SYSTEMS, TESSERA, System, start_ours
from benchmarks.peers.gguf_file import ensure_gguf, gguf_name, interleaved
from benchmarks.peers.install import RECIPES
from benchmarks.random_llama import LLAMA_TINY, ensure_random_llama, make_tokenizer
from parallel.conversion.gguf import convert_gguf
from parallel.text.tokenizer import Tokenizer


def test_a_load_is_the_same_every_time_and_as_long_as_asked() -> None:
    load = make_load(MIXED, clients=8, requests=200, vocabulary=1000, turn=0)
    assert load == make_load(MIXED, clients=8, requests=200, vocabulary=1000, turn=0)
    prompts = [len(job.prompt) for job in load.jobs]
    outputs = [job.output_tokens for job in load.jobs]
    assert min(prompts) >= 32 and max(prompts) <= 512 and max(prompts) - min(prompts) > 400
    assert min(outputs) >= 16 and max(outputs) <= 128 and max(outputs) - min(outputs) > 90
    assert all(256 <= i < 1000 for job in load.jobs for i in job.prompt)


def test_no_two_loads_of_a_run_share_a_prompt() -> None:
    loads = [make_load(DECODE, clients, 8, 1000, turn) for clients in (1, 8) for turn in (-1, 0, 1)]
    starts = [job.prompt[:16] for load in loads for job in load.jobs]
    assert len(set(starts)) == len(starts) == 48


def test_loads_and_answers_survive_files(tmp_path: Path) -> None:
    load = make_load(MIXED, 2, 3, 500, 0)
    load.write(tmp_path / "load.json")
    assert Load.read(tmp_path / "load.json") == load
    served = Served(1.0, 2.5, (Answer(1.0, (1.5, 2.0)), Answer(1.25, ())))
    served.write(tmp_path / "served.json")
    assert Served.read(tmp_path / "served.json") == served
    assert sorted(p.name for p in tmp_path.iterdir()) == ["load.json", "served.json"]


def test_an_answer_short_of_tokens_is_told_and_jobs_that_time_left_out_are_not() -> None:
    load = Load(1, (Job((1,), 2), Job((2,), 3), Job((3,), 1)))
    served = Served(0.0, 1.0, (Answer(0.0, (0.5, 0.6)), Answer(0.6, (0.7,))))
    assert incomplete(load, served) == ["job 1 gave 1 tokens of 3"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_enough_do_not_exceed(
    values: list[float], percent: int
) -> None:
    found = percentile(values, percent)
    assert found in values
    assert 100 * sum(v <= found for v in values) >= percent * len(values)
    assert 100 * sum(v < found for v in values) < percent * len(values)


def test_what_a_load_came_to() -> None:
    load = Load(2, (Job((1,), 3), Job((2,), 2)))
    answers = (Answer(10.0, (11.0, 11.5, 12.5)), Answer(10.0, (12.0, 12.25)))
    found = summarise(load, Served(10.0, 12.25, answers), memory_bytes=7)
    # The token at 12.5 s came when a client was already out of work.
    assert found.tokens_per_second == 4 / 2.25
    assert (found.requests, found.output_tokens, found.memory_bytes) == (2, 5, 7)
    assert (found.first_token_p50_seconds, found.first_token_p99_seconds) == (1.0, 2.0)
    assert (found.token_p50_seconds, found.token_p99_seconds) == (0.25, 0.75)
    assert found.gap_p99_seconds == 1.0
    assert found.decode_tokens_per_second == 1 / 0.25
    with pytest.raises(ValueError, match="no request"):
        summarise(load, Served(0.0, 1.0, ()), 0)


def test_decoding_is_timed_while_every_client_decodes() -> None:
    """Two clients: together from 2 to 4 s, in which three tokens of one come and two of the other,
    the ends of that time counted at its end alone."""
    answers = [(0.0, 1.0, 2.5, 3.0, 4.0), (2.0, 3.5, 4.0, 6.0)]
    assert decode_rate(answers, 2) == 5 / 2
    assert decode_rate(answers, 3) is None
    assert decode_rate([(1.0, 2.0, 3.0)], 1) == 1.0
    # Tokens that come together count as many.
    assert decode_rate([(1.0, 3.0, 3.0, 3.0, 5.0)], 1) == 1.0


def test_a_ratio_is_taken_within_a_turn() -> None:
    found = ratio([10.0, 30.0, 20.0], [5.0, 10.0, 20.0])
    assert found == Spread(median=2.0, least=1.0, most=3.0)
    assert found.text(1) == "2.0 (1.0–3.0)"
    assert Spread.of([1.25]).text(2) == "1.25"


EVENTS = (
    b': a comment\r\ndata: {"a": 1}\r\n\r\nevent: x\ndata:{"b": "\xc3\xa4"}\n\ndata: [DONE]\n\n'
)


@given(st.lists(st.integers(0, len(EVENTS)), max_size=12))
def test_events_are_the_same_however_the_bytes_come(cuts: list[int]) -> None:
    parser = EventParser()
    edges = [0, *sorted(cuts), len(EVENTS)]
    found = [data for a, b in pairwise(edges) for data in parser.feed(EVENTS[a:b])]
    assert found == ['{"a": 1}', '{"b": "ä"}', "[DONE]"]


def test_tokens_are_counted_by_usage_or_by_choices() -> None:
    assert tokens_after({"usage": {"completion_tokens": 7}, "choices": []}, 3) == 7
    assert tokens_after({"usage": None, "choices": [{"text": "a"}]}, 3) == 4
    assert tokens_after({"choices": [{"text": "", "finish_reason": "length"}]}, 3) == 3


def test_every_system_has_all_threads_and_a_label_of_its_own() -> None:
    assert [system.ranks * system.threads for system in (*TESSERA, *PEERS)] == [2] * 11
    assert len(SYSTEMS) == 11
    assert {system.environment for system in PEERS} == set(RECIPES)
    assert System("a", dp=2).label == "a dp=2"
    start = start_ours(System("a", pp=2), Path("m"), 1, {"memory_gib": 9})
    assert "pp=2" in start.command and "memory_gib=9" in start.command
    assert start.variables["OMP_NUM_THREADS"] == "1"


def test_the_random_tokenizer_shows_every_token(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(make_tokenizer(20000)))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocabulary_size == 20000
    for i in (259, 5000, 19999):
        text = tokenizer.decode([i])
        assert text.isascii() and text.isprintable() and len(text) in (2, 3)


def test_a_gguf_file_holds_the_same_weights(tmp_path: Path) -> None:
    """Read back by the converter that the product uses."""
    from safetensors.torch import load_file

    model = ensure_random_llama(LLAMA_TINY)
    convert_gguf(ensure_gguf(model), tmp_path, progress=False)
    original, back = (
        load_file(model / "model.safetensors"),
        load_file(tmp_path / "model.safetensors"),
    )
    assert set(original) == set(back)
    for name, tensor in original.items():
        assert torch.equal(tensor, back[name].to(tensor.dtype)), name
    assert json.loads((tmp_path / "config.json").read_text())["num_key_value_heads"] == 2


def test_gguf_names_and_rows() -> None:
    assert gguf_name("model.layers.11.mlp.down_proj.weight") == "blk.11.ffn_down.weight"
    rows = torch.arange(8.0).reshape(8, 1)
    # Two heads of four rows: halves (0, 1) and (2, 3) become pairs (0, 2), (1, 3).
    assert interleaved(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
