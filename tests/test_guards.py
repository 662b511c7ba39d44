"""Whom the front lets in: the key, the size of a body, places in the queue."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.front_stack import Stack
from tests.small_tokenizers import byte_level, save

API_KEY = "k3y"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(byte_level(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def guarded(model: Path) -> Iterator[Stack]:
    with Stack(model, facts={"most_sequences": 2}, api_key=API_KEY, max_body_bytes=2000) as made:
        yield made


def test_a_key_is_asked_for(guarded: Stack) -> None:
    wrong = [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer k3"},
        {"Authorization": "Bearer k3y2"},
        {"Authorization": f"Basic {API_KEY}"},
        {"Authorization": API_KEY},
    ]
    with httpx.Client(base_url=guarded.url) as client:
        for headers in wrong:
            for path in ("/v1/models", "/v1/completions", "/nowhere", "/openapi.json"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401, (path, headers)
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/health", "/ready", "/metrics"):
            assert client.get(path).status_code == 200
        bearer = {"Authorization": f"bearer {API_KEY}"}
        assert client.get("/v1/models", headers=bearer).status_code == 200
    with pytest.raises(openai.AuthenticationError, match="API key"):
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="no", max_retries=0).models.list()
    assert guarded.openai.models.list().data[0].id == "org/small"


def test_large_bodies_are_refused(guarded: Stack) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(300):
            yield b'{"prompt": "' + b"x" * 8000

    for content in (b"x" * 2001, b"x" * 3_000_000, chunks()):
        headers = {"Content-Type": "application/json"}
        answer = guarded.http.post("/v1/completions", content=content, headers=headers)
        assert answer.status_code == 413
        assert "1.95 KiB" in answer.json()["error"]["message"]
    fits = {"prompt": "a", "user": "x" * 1900}
    assert guarded.http.post("/v1/completions", json=fits).status_code == 200


def test_an_announced_large_body_is_refused_before_it_is_sent(guarded: Stack) -> None:
    host, port = guarded.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as stream:
        head = "POST /v1/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {API_KEY}"
        head += "Content-Length: 99999999", "Expect: 100-continue"
        stream.sendall("\r\n".join([*head, "", ""]).encode())
        assert stream.recv(1000).startswith(b"HTTP/1.1 413 ")


@contextmanager
def full(stack: Stack) -> Iterator[list[int]]:
    """Two requests that nothing comes of inside, as many as there are places for; their statuses
    come at the end."""
    engine, answers = stack.engine, list[int]()
    engine.hold()
    threads = [
        threading.Thread(target=lambda: answers.append(stack.complete("ab").status_code))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    engine.wait_for(lambda: engine.running == 2)
    try:
        yield answers
    finally:
        engine.release()
        for thread in threads:
            thread.join()


def refusals(stack: Stack) -> float:
    name = "tessera:requests_refused_total{"
    (line,) = (x for x in stack.http.get("/metrics").text.splitlines() if x.startswith(name))
    return float(line.split()[-1])


def test_too_many_waiting_are_turned_away(guarded: Stack) -> None:
    before, sent = refusals(guarded), len(guarded.engine.submitted)
    with full(guarded) as answers:
        for stream in (False, True):
            refused = guarded.complete("ab", stream=stream)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        with pytest.raises(openai.RateLimitError, match="2 requests run or wait"):
            guarded.openai.completions.create(model="org/small", prompt="a")
        assert len(guarded.engine.submitted) == sent + 2
        assert refusals(guarded) == before + 3
        assert guarded.http.get("/health").status_code == 200
    assert answers == [200, 200]
    assert guarded.complete("ab").status_code == 200


def test_the_official_client_tries_again_when_told(guarded: Stack) -> None:
    before = refusals(guarded)
    answers: list[str] = []
    patient = guarded.openai.with_options(max_retries=3)

    def ask() -> None:
        made = patient.completions.create(model="org/small", prompt="ab", temperature=0)
        answers.append(made.choices[0].text)

    with full(guarded):
        thread = threading.Thread(target=ask)
        thread.start()
        guarded.engine.wait_for(lambda: refusals(guarded) == before + 1)
    thread.join()
    assert answers == ["ab"]


def test_a_request_takes_places_for_all_its_sequences_or_none(guarded: Stack) -> None:
    sent = len(guarded.engine.submitted)
    never = guarded.complete("ab", n=3)
    assert never.status_code == 400 and never.json()["error"]["param"] == "n"
    many = guarded.complete(["ab", "ab", "ab"])
    assert many.status_code == 400 and many.json()["error"]["param"] == "prompt"
    guarded.engine.hold()
    asked = guarded.http.build_request("POST", "/v1/completions", json={"prompt": "ab"})
    waiting = threading.Thread(target=lambda: guarded.http.send(asked))
    waiting.start()
    guarded.engine.wait_for(lambda: guarded.engine.running == 1)
    assert guarded.complete("ab", n=2).status_code == 429
    assert guarded.complete(["ab", "cd"]).status_code == 429
    assert len(guarded.engine.submitted) == sent + 1
    guarded.engine.release()
    waiting.join()
    assert guarded.complete("ab", n=2).status_code == 200


def leave_early(stack: Stack, body: dict[str, Any]) -> None:
    """Asks, and goes away before anything was answered."""
    content = json.dumps(body).encode()
    head = ("POST /v1/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {API_KEY}")
    head += "Content-Type: application/json", f"Content-Length: {len(content)}"
    host, port = stack.url.removeprefix("http://").split(":")
    engine, cancelled = stack.engine, len(stack.engine.cancelled)
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall("\r\n".join((*head, "", "")).encode() + content)
        engine.wait_for(lambda: engine.running == 2)
    engine.wait_for(lambda: len(engine.cancelled) == cancelled + 2)


@pytest.mark.parametrize("body", [{"prompt": "ab", "n": 2}, {"prompt": ["ab", "cd"]}], ids=str)
def test_whoever_leaves_the_queue_gives_all_places_back(
    guarded: Stack, body: dict[str, Any]
) -> None:
    for stream in (False, True):
        guarded.engine.hold()
        leave_early(guarded, {**body, "stream": stream})
        guarded.engine.release()
        with full(guarded):
            assert guarded.complete("ab").status_code == 429
    for bad in ({"n": 0}, {"priority": "high"}, {"prompt": []}, {"temperature": -1}):
        assert guarded.complete(**bad).status_code == 400
    assert guarded.complete("ab", n=2).status_code == 200


def test_what_a_leader_refuses_for_its_queue_is_429_too(guarded: Stack) -> None:
    engine, before = guarded.engine, refusals(guarded)
    engine.refusal, engine.refusal_code = "no place", "queue_full"
    for n in (1, 2):
        refused = guarded.complete("ab", n=n)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
    assert refusals(guarded) >= before + 2
    engine.refusal_code = "context_length_exceeded"
    refused = guarded.complete("ab")
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    engine.refusal = engine.refusal_code = None
    assert guarded.complete("ab", n=2).status_code == 200
