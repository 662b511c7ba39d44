"""The whole server as users start it: real ranks, the real front process, the official client."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from parallel.units import MIB
from tests.commands import ROOT, command, environment, run

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


class Server:
    """A server in a process of its own; `close` asks it to drain and checks that nothing stays."""

    def __init__(self, *arguments: str, torchrun: int | None = None, **variables: str):
        self.process = subprocess.Popen(
            command("serve", "port=0", *arguments, torchrun=torchrun),
            env=environment(**variables),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.printed: list[str] = []
        self.errors: list[str] = []
        self._errors_reader = threading.Thread(target=self._read_errors, daemon=True)
        self._errors_reader.start()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line)
            if line.startswith("ready "):
                break
        else:
            raise AssertionError(f"the server didn't start: {''.join(self.errors)}")
        self.address = self.printed[-1].split()[1]
        self._output_reader = threading.Thread(target=self._read_output, daemon=True)
        self._output_reader.start()

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        self.printed.extend(self.process.stdout)

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0)

    def family(self) -> list[int]:
        """All processes below this one, front process included."""
        return descendants(self.process.pid)

    def wait(self) -> int:
        code = self.process.wait(timeout=60)
        self._errors_reader.join(10)
        self._output_reader.join(10)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return code

    def end(self) -> None:
        """Kills what is left of it, if a test went wrong."""
        if self.process.poll() is None:
            for pid in [self.process.pid, *self.family()]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.wait()


def descendants(pid: int) -> list[int]:
    try:
        own = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    found = [int(c) for c in own]
    # A process may be started by any thread of its parent.
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(c) for c in (task / "children").read_text().split() if int(c) not in found]
    return found + [d for c in found for d in descendants(c)]


def alive(pids: list[int]) -> list[int]:
    return [p for p in pids if Path(f"/proc/{p}/cmdline").exists() and running(p)]


def running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # In float32: two first words of the answer are as good as equal in bfloat16.
    started = Server(
        "tp=2", "precision.weights=fp32", "memory_gib=1.5", "engine.context_tokens=1024"
    )
    yield started
    family = started.family()
    started.process.terminate()
    assert started.wait() == 0, started.errors
    assert alive(family) == []
    assert any("to the byte" in line for line in started.printed)


def test_what_it_prints_before_it_serves(server: Server) -> None:
    text = "".join(server.printed)
    for words in ("Plan: tp=2", "ranks over", "exact", "curl", "KV cache"):
        assert words in text
    assert server.address.startswith("http://127.0.0.1:")


def test_chat_answers(server: Server) -> None:
    answer = server.client().chat.completions.create(
        model="SmolLM2-135M-Instruct", messages=QUESTION, temperature=0, max_tokens=16
    )
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.completion_tokens == 8


def test_streams_are_the_whole_and_joined_requests_do_not_mix(server: Server) -> None:
    client = server.client()

    def ask(prompt: str) -> str:
        answer = client.completions.create(
            model="SmolLM2-135M-Instruct", prompt=prompt, temperature=0, max_tokens=24
        )
        return answer.choices[0].text

    prompts = ["1, 2, 3, 4,", "The capital of Italy is", "Once upon a time"]
    together: dict[str, str] = {}
    threads = [threading.Thread(target=lambda p=p: together.update({p: ask(p)})) for p in prompts]
    for thread in threads:
        thread.start()
    stream = client.completions.create(
        model="SmolLM2-135M-Instruct",
        prompt=prompts[0],
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    for thread in threads:
        thread.join()
    assert "".join(c.choices[0].text for c in chunks if c.choices) == together[prompts[0]]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 24
    assert together[prompts[0]].startswith(" 5, 6, 7")
    assert "Rome" in together[prompts[1]]


def test_the_same_seed_gives_the_same_text(server: Server) -> None:
    """One request at a time: in bf16 the logits of two depend on whether they share a batch."""

    def ask(seed: int, n: int = 1) -> list[str]:
        answer = server.client().chat.completions.create(
            model="SmolLM2-135M-Instruct",
            messages=QUESTION,
            seed=seed,
            n=n,
            temperature=1.5,
            max_tokens=12,
        )
        return [c.message.content or "" for c in answer.choices]

    first = ask(5)
    assert ask(5) == first and ask(6) != first
    one, other = ask(5, n=2)
    assert one != other


def test_prompt_longer_than_the_context(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().completions.create(
            model="SmolLM2-135M-Instruct", prompt=[5] * 2000, max_tokens=4
        )
    assert caught.value.code == "context_length_exceeded"
    assert "2000" in caught.value.message and "1024" in caught.value.message


def test_a_client_that_goes_away_frees_its_place(server: Server) -> None:
    with server.client().completions.create(
        model="SmolLM2-135M-Instruct",
        prompt="Once",
        max_tokens=900,
        stream=True,
        extra_body={"ignore_eos": True},
    ) as stream:
        next(iter(stream))
        assert gauge(server, "num_requests_running") == 1
    for _ in range(2000):
        if gauge(server, "num_requests_running") == 0 == gauge(server, "kv_cache_usage_perc"):
            return
    raise AssertionError("the place was not freed")


def gauge(server: Server, name: str) -> float:
    text = httpx.get(f"{server.address}/metrics").text
    found = re.search(rf"^tessera:{name}{{.*}} (\S+)$", text, re.M)
    assert found is not None, text
    return float(found[1])


def test_plan_and_report_over_http(server: Server) -> None:
    test_chat_answers(server)
    plan = httpx.get(f"{server.address}/v1/parallel/plan").json()
    assert plan["tp"] == 2
    report = httpx.get(f"{server.address}/v1/parallel/report", timeout=60).json()
    for rank in report["ranks"]:
        for cause in ("weights", "kv_cache"):
            figures = rank["memory_bytes"][cause]
            assert figures["predicted"] == figures["measured"]
    assert {row["rank"] for row in report["collectives"]} == {0, 1}
    with_front, without = (rank["memory_bytes"]["runtime"] for rank in report["ranks"])
    for runtime in ("predicted", "measured"):
        assert with_front[runtime] - without[runtime] > 32 * MIB
    assert report["provenance"]["config"]["tp"] == 2 == plan["tp"]
    assert httpx.get(f"{server.address}/health").status_code == 200
    assert httpx.get(f"{server.address}/ready").status_code == 200


def test_port_in_use_is_said_before_loading() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "tp=1", f"port={port}", "memory_gib=1.5")
    assert done.returncode == 2
    assert f"port {port} is in use" in done.stderr and "port=0" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["port=70000"], "port=70000"),
        (["api_key_file=/nowhere"], "api_key_file=/nowhere"),
        (["threads=0", "tp=1"], "threads=0"),
        (["device=gpu"], "device"),
    ],
)
def test_bad_settings(arguments: list[str], words: str) -> None:
    done = run("serve", *arguments)
    assert done.returncode == 2 and words in done.stderr


def test_a_dead_rank_ends_the_job_and_is_named() -> None:
    started = Server("pp=2", "memory_gib=1.5", torchrun=2, TESSERA_API_KEY="secret")
    with pytest.raises(openai.AuthenticationError):
        started.client("wrong").models.list()
    models = started.client("secret").models.list()
    assert [m.id for m in models.data] == ["SmolLM2-135M-Instruct"]
    assert "secret" not in "".join(started.printed)
    family = started.family()
    ranks = [p for p in family if b"launch/serve.py" in Path(f"/proc/{p}/cmdline").read_bytes()]
    victim = next(p for p in ranks if environment_of(p)["RANK"] == "1")
    os.kill(victim, signal.SIGKILL)
    assert started.wait() != 0
    assert f"rank 1 (pid {victim}" in "".join(started.errors)
    assert alive(family) == []


def environment_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(p.split("=", 1) for p in pairs if "=" in p)
