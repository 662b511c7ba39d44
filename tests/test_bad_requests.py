"""What the OpenAI routes refuse, and how they say it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from parallel.server.errors import MAX_MESSAGE_CHARACTERS
from tests.front_stack import MODEL, Stack
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


def test_what_the_engine_refuses_is_an_error_response(stack: Stack) -> None:
    stack.engine.refusal = "no room for it"
    for stream in (False, True):
        answer = stack.complete(stream=stream)
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "no room for it"
        assert answer.json()["error"]["type"] == "server_error"


SECRET = "sEcReT"
COMPLETION_FAULTS: list[tuple[dict[str, Any], str | None]] = [
    ({"temperature": -1}, "temperature"),
    ({"temperature": SECRET}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 10**30}, "top_k"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"seed": 10**30}, "seed"),
    ({"seed": SECRET}, "seed"),
    ({"priority": 1.5}, "priority"),
    ({"priority": True}, "priority"),
    ({"priority": 10**30}, "priority"),
    ({"priority": SECRET}, "priority"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 2, "best_of": 3}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": True}, "echo"),
    ({"suffix": SECRET}, "suffix"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"min_tokens": 3}, "min_tokens"),
    ({"stream": SECRET}, "stream"),
    ({"stream_options": {"include_usage": SECRET}}, "stream_options"),
    ({"stop": [SECRET] * 17}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": [5]}, "stop"),
    ({"stop": {SECRET: 1}}, "stop"),
    ({"stop_token_ids": [SECRET]}, "stop_token_ids"),
    ({"stop_token_ids": 5}, "stop_token_ids"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [5, SECRET]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [10**9]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": {SECRET: 1}}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": ["a"] * 129}, "prompt"),
    ({"prompt": "\ud800"}, None),
    ({"model": 5}, "model"),
]


@pytest.mark.parametrize(("fault", "param"), COMPLETION_FAULTS)
def test_bad_values_are_named_and_not_repeated(
    stack: Stack, fault: dict[str, Any], param: str | None
) -> None:
    body = {"prompt": "hello", **fault}
    answer = stack.http.post(
        "/v1/completions",
        content=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert error["type"] == "invalid_request_error"
    assert SECRET not in answer.text and len(error["message"]) <= MAX_MESSAGE_CHARACTERS
    assert stack.engine.submitted == []


CHAT_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": SECRET}, "messages"),
    ({"messages": [5, 6]}, "messages"),
    ({"messages": [{"content": SECRET}]}, "messages"),
    ({"messages": [{"role": 5, "content": SECRET}]}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages"),
    ({"messages": [{"role": "user", "content": [SECRET]}]}, "messages"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
    ({"logprobs": 5}, "logprobs"),
    ({"tools": [{"type": "function", "function": {"name": SECRET}}]}, "tools"),
    ({"max_completion_tokens": 0}, "max_tokens"),
    ({"chat_template_kwargs": SECRET}, "chat_template_kwargs"),
]


@pytest.mark.parametrize(("fault", "param"), CHAT_FAULTS)
def test_bad_chats_are_named_and_not_repeated(
    stack: Stack, fault: dict[str, Any], param: str
) -> None:
    answer = stack.http.post("/v1/chat/completions", json={"messages": USER, **fault})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert SECRET not in answer.text and stack.engine.submitted == []


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"not json " + SECRET.encode(), b"\xff\xfe", b"[1]", b'"x"', b"[" * 200_000],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_body_that_is_no_json_object(stack: Stack, path: str, content: bytes) -> None:
    answer = stack.http.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and SECRET not in answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_of_another_type(stack: Stack) -> None:
    answer = stack.http.post("/v1/completions", data={"prompt": "hello"})
    assert answer.status_code == 400
    assert "application/json" in answer.json()["error"]["message"]


def test_a_million_wrong_entries_are_one_error(stack: Stack) -> None:
    body = {"messages": [0] * 500_000}
    answer = stack.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400 and len(answer.content) < 2000


def test_prompts_longer_than_the_context(stack: Stack) -> None:
    for answer in (stack.complete("a b " * 100), stack.chat("a b " * 100)):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
        assert "256" in error["message"]
    over = stack.complete("ab", max_tokens=255)
    error = over.json()["error"]
    assert (over.status_code, error["param"]) == (400, "max_tokens")
    for number in ("2 tokens", "max_tokens=255", "257", "256", "254"):
        assert number in error["message"]
    assert stack.complete("ab", max_tokens=254).status_code == 200
    assert stack.complete([5] * 255, max_tokens=None).json()["usage"]["completion_tokens"] == 1


def test_an_unknown_model_names_the_served_one(stack: Stack) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        stack.openai.completions.create(model=SECRET, prompt="a")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    assert MODEL in str(caught.value) and SECRET not in str(caught.value)


def test_unknown_paths_and_methods(stack: Stack) -> None:
    missing = stack.http.get(f"/v1/{SECRET}")
    assert missing.status_code == 404 and SECRET not in missing.text
    assert missing.json()["error"]["type"] == "invalid_request_error"
    wrong = stack.http.get("/v1/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    assert set(wrong.json()["error"]) == {"message", "type", "param", "code"}
