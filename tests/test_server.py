"""The OpenAI routes, with a real front process and leaders that repeat the prompt."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.front_stack import MODEL, Stack, chat_prompt
from tests.small_tokenizers import byte_level, save

USER = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(save(byte_level(), tmp_path_factory.mktemp("model"))) as made:
        yield made


@pytest.fixture(autouse=True)
def fresh(stack: Stack) -> Iterator[None]:
    with stack.fresh():
        yield


def events(text: str) -> list[Any]:
    """The bodies of an event stream, which must end with [DONE]."""
    parts = text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def test_chat_with_the_official_client(stack: Stack) -> None:
    answer = stack.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hello €😀"}], temperature=0
    )
    assert answer.choices[0].message.content == chat_prompt("hello €😀")
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion" and answer.model == MODEL
    prompt = len(stack.encode("<s>" + chat_prompt("hello €😀")))
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, prompt + 1)
    assert answer.usage.total_tokens == 2 * prompt + 1


def test_chat_streams_whole_characters(stack: Stack) -> None:
    stream = stack.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "€😀 é"}], temperature=0, stream=True
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == chat_prompt("€😀 é")
    assert len(pieces) > 10 and all("\ufffd" not in piece for piece in pieces)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_a_stream_is_server_sent_events(stack: Stack) -> None:
    answer = stack.chat(stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert all("usage" not in event for event in events(answer.text))


def test_usage_in_a_stream_when_asked(stack: Stack) -> None:
    found = events(
        stack.complete("hello", stream=True, stream_options={"include_usage": True}).text
    )
    assert [e["usage"] for e in found[:-1]] == [None] * (len(found) - 1)
    assert found[-1]["choices"] == []
    assert found[-1]["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = events(stack.complete("abcdef", stream=True, stream_options=options).text)
    counts = [e["usage"]["completion_tokens"] for e in found]
    assert counts == sorted(counts) and counts[0] < counts[-1] == 7


def test_content_as_parts(stack: Stack) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    content = stack.chat(parts).json()["choices"][0]["message"]["content"]
    assert content == chat_prompt("hello")
    refused = stack.chat([{"type": "image_url", "image_url": {"url": "http://secret"}}])
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "messages"


def test_template_switches(stack: Stack) -> None:
    assert stack.chat(chat_template_kwargs={"enable_thinking": False}).status_code == 200


def test_each_kind_of_prompt(stack: Stack) -> None:
    ids = stack.encode("the thing")
    for prompt in ("the thing", ["the thing"], ids, [ids]):
        answer = stack.complete(prompt).json()
        assert [c["text"] for c in answer["choices"]] == ["the thing"]
        assert answer["usage"]["prompt_tokens"] == len(ids)


def test_many_prompts_and_n_come_in_order(stack: Stack) -> None:
    answer = stack.openai.completions.create(
        model=MODEL, prompt=["ab", "xyz"], n=2, max_tokens=20, temperature=0, best_of=2
    )
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert [c.text for c in answer.choices] == ["ab", "ab", "xyz", "xyz"]
    assert answer.usage is not None and answer.usage.prompt_tokens == 5
    found = events(stack.complete(["ab", "xyz"], n=2, stream=True).text)
    texts = {i: "" for i in range(4)}
    for choice in (e["choices"][0] for e in found):
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "ab", 1: "ab", 2: "xyz", 3: "xyz"}


def test_seeds_count_up_and_are_random_when_absent(stack: Stack) -> None:
    seeded = stack.chat("abc", n=3, seed=7, temperature=1.0).json()
    assert [s["sampling"]["seed"] for s in stack.engine.submitted] == [7, 8, 9]
    texts = [c["message"]["content"] for c in seeded["choices"]]
    assert len(set(texts)) == 3
    stack.engine.submitted.clear()
    for _ in range(4):
        stack.complete("ab")
    assert len({s["sampling"]["seed"] for s in stack.engine.submitted}) == 4


def test_sequences_of_one_prompt_are_one_group(stack: Stack) -> None:
    assert stack.complete(["ab", "xyz"], n=2, priority=-3).status_code == 200
    sent = stack.engine.submitted
    numbers = [s["id"] for s in sent]
    assert [s["group"] for s in sent] == [numbers[0]] * 2 + [numbers[2]] * 2
    assert {s["priority"] for s in sent} == {-3}
    stack.engine.submitted.clear()
    assert stack.chat("ab", priority=7).status_code == 200
    (alone,) = stack.engine.submitted
    assert (alone["group"], alone["priority"]) == (None, 7)


def test_usage_tells_what_of_the_prompts_was_cached(stack: Stack) -> None:
    stack.engine.cached = 2
    answer = stack.openai.completions.create(
        model=MODEL, prompt=["abc", "xyz"], n=2, max_tokens=5, temperature=0
    )
    stack.engine.cached = 0
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


def test_sampling_reaches_the_engine(stack: Stack) -> None:
    asked: dict[str, Any] = {
        "max_tokens": 3,
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.75,
        "repetition_penalty": 1.25,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 11,
        "ignore_eos": True,
        "logprobs": 2,
        "stop_token_ids": [250],
    }
    assert stack.complete("hello", **asked).status_code == 200
    assert stack.engine.submitted[0]["sampling"] == asked
    assert stack.engine.submitted[0]["prompt"] == stack.encode("hello")


def test_defaults_are_openais(stack: Stack) -> None:
    assert stack.http.post("/v1/completions", json={"prompt": "hello"}).status_code == 200
    assert stack.http.post("/v1/chat/completions", json={"messages": USER}).status_code == 200
    completion, chat = (s["sampling"] for s in stack.engine.submitted)
    assert (completion["max_tokens"], completion["temperature"], completion["top_p"]) == (16, 1, 1)
    used = len(stack.engine.submitted[1]["prompt"])
    assert (chat["max_tokens"], chat["logprobs"], chat["top_k"]) == (256 - used, None, 0)
    nulls = dict.fromkeys(("max_tokens", "temperature", "top_p", "n", "stop", "seed", "stream"))
    assert stack.http.post("/v1/completions", json={"prompt": "a", **nulls}).status_code == 200


def test_fields_that_clients_send_are_accepted(stack: Stack) -> None:
    neutral: dict[str, Any] = {
        "user": "me",
        "echo": False,
        "suffix": None,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tools": [],
        "top_k": -1,
        "min_tokens": 5,
        "ignore_eos": True,
        "store": False,
        "metadata": {"a": "b"},
        "max_tokens": 5,
    }
    assert stack.complete("hello", **neutral).json()["usage"]["completion_tokens"] == 5
    short = stack.chat("hello", max_completion_tokens=2, max_tokens=99).json()
    assert short["usage"]["completion_tokens"] == 2
    assert short["choices"][0]["finish_reason"] == "length"


def test_stop_strings_cut_and_free_the_place(stack: Stack) -> None:
    whole = stack.complete("abc STOP def", stop="STOP").json()["choices"][0]
    assert (whole["text"], whole["finish_reason"]) == ("abc ", "stop")
    stops = ["x", "y", "ef", "zz", "never"]
    found = events(stack.complete("abcdefghi", stop=stops, stream=True).text)
    pieces = [e["choices"][0]["text"] for e in found]
    assert "".join(pieces) == "abcd" and found[-1]["choices"][0]["finish_reason"] == "stop"
    stack.engine.wait_for(lambda: len(stack.engine.cancelled) == 2)


def test_stop_token_ids_end_without_their_text(stack: Stack) -> None:
    (token,) = stack.encode("c")
    choice = stack.complete("abcd", stop_token_ids=[token]).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")


def test_chat_logprobs(stack: Stack) -> None:
    answer = stack.openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "a€"}],
        temperature=0,
        logprobs=True,
        top_logprobs=3,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    raw = b"".join(bytes(entry.bytes or ()) for entry in logprobs.content)
    assert raw.decode() == "<s>" + chat_prompt("a€") + "</s>"
    assert {entry.logprob for entry in logprobs.content} == {-0.5}
    assert [t.logprob for t in logprobs.content[0].top_logprobs] == [-0.5, -1.5, -9999.0]
    assert (
        stack.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        == []
    )
    assert stack.chat().json()["choices"][0]["logprobs"] is None


def test_completion_logprobs(stack: Stack) -> None:
    body = stack.complete("hello a€", logprobs=2).json()["choices"][0]["logprobs"]
    assert body["tokens"] == [
        *("hello", " ", "a"),
        *("bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"),
        "</s>",
    ]
    assert body["text_offset"] == [0, 5, 6, 7, 8, 9, 10]
    assert body["token_logprobs"] == [-0.5] * 7
    assert body["top_logprobs"][2] == {"a": -0.5, "b": -1.5}
    chosen = stack.complete("hello", logprobs=0).json()["choices"][0]["logprobs"]
    assert chosen["top_logprobs"][0] == {"hello": -0.5}


@pytest.mark.parametrize("path", ["chat", "complete"])
def test_streamed_logprobs_are_those_of_the_whole(stack: Stack, path: str) -> None:
    body: dict[str, Any] = {"stop": ["€!"]}
    body |= {"logprobs": True, "top_logprobs": 2} if path == "chat" else {"logprobs": 2}
    ask = getattr(stack, path)
    whole = ask("a€ b", **body).json()["choices"][0]["logprobs"]
    merged: dict[str, list[Any]] = {}
    for event in events(ask("a€ b", stream=True, **body).text):
        for name, value in (event["choices"][0]["logprobs"] or {}).items():
            merged.setdefault(name, []).extend(value or [])
    assert merged == {name: value or [] for name, value in whole.items()}


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(stack: Stack, stream: bool, steps: int) -> None:
    stack.engine.hold(after_steps=steps)
    body = {"prompt": "hello there", "n": 2, "stream": stream, "max_tokens": 50}
    content = json.dumps(body).encode()
    head = ("POST /v1/completions HTTP/1.1", "Host: x", "Content-Type: application/json")
    lines = "\r\n".join((*head, f"Content-Length: {len(content)}", "", ""))
    host, port = stack.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(lines.encode() + content)
        stack.engine.wait_for(lambda: stack.engine.running == 2)
        if stream and steps:
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    stack.engine.wait_for(lambda: len(stack.engine.cancelled) == 2)
    assert stack.engine.running == 0


def test_models(stack: Stack) -> None:
    (model,) = stack.openai.models.list().data
    assert model.id == MODEL and model.owned_by == "tessera"
    assert stack.openai.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="org/small"):
        stack.openai.models.retrieve("other")


def test_probes_plan_and_report(stack: Stack) -> None:
    assert stack.http.get("/health").json() == {"status": "healthy"}
    assert stack.http.get("/ready").json() == {"status": "ready"}
    assert stack.http.get("/v1/parallel/plan").json()["tp"] == 2
    report = stack.http.get("/v1/parallel/report").json()
    assert report.pop("restart").items() >= {"restarts": 0, "seconds": None}.items()
    assert report == {"ranks": [0], "provenance": None}


def metric(stack: Stack, name: str) -> float:
    lines = stack.http.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith(f"tessera:{name}{{")]
    assert len(found) == 1 and MODEL in found[0]
    return float(found[0].split()[-1])


def test_metrics_count_what_was_done(stack: Stack) -> None:
    names = ("prompt_tokens_total", "generation_tokens_total", "time_to_first_token_seconds_count")
    names += ("inter_token_latency_seconds_count", "e2e_request_latency_seconds_count")
    before = {name: metric(stack, name) for name in names}
    queued = metric(stack, "request_queue_time_seconds_count")
    assert stack.complete("abcd").status_code == 200
    gained = [metric(stack, name) - before[name] for name in names]
    assert gained == [4, 5, 1, 4, 1]
    assert metric(stack, "request_queue_time_seconds_count") > queued
    assert metric(stack, "kv_cache_usage_perc") == 0
    counts = ("num_preemptions", "prefix_cache_queries", "prefix_cache_hits")
    assert [metric(stack, f"{name}_total") for name in counts] == [2, 40, 30]
    stack.engine.hold(after_steps=1)
    body = {"prompt": "abcd", "stream": True}
    with stack.http.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert metric(stack, "num_requests_running") == 1
        assert metric(stack, "num_requests_waiting") == 0
        assert metric(stack, "kv_cache_usage_perc") == 0.25
        stack.engine.release()
        assert [line for line in lines if line][-1] == "data: [DONE]"
