"""The front process's life: ports, drain, lost leaders and lost parents."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from parallel.errors import CheckpointError, ConfigError, RunError
from parallel.server.binding import bind_port
from parallel.server.process import spawn_front
from parallel.server.reports import merge_reports
from parallel.server.settings import FrontSettings
from tests.fake_engine import FakeEngine, make_facts
from tests.front_stack import KEY, Stack
from tests.small_tokenizers import byte_level, save

ROOT = Path(__file__).resolve().parent.parent
API_KEY = "k3y"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(byte_level(), tmp_path_factory.mktemp("model"))


def test_the_front_starts_without_torch() -> None:
    code = "import parallel.server.front, sys; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_silent_ranks_are_not_healthy(model: Path) -> None:
    with Stack(model, health_seconds=0.1, report_seconds=0.1) as stack:
        stack.engine.answers = False
        answer = stack.http.get("/health")
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "unhealthy"
        report = stack.http.get("/v1/parallel/report")
        assert report.status_code == 503 and "no answer" in report.json()["error"]["message"]


def test_a_port_in_use_is_said_at_once(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        front = spawn_front(FrontSettings(str(model), "m", KEY, port=port))
        with pytest.raises(ConfigError, match=rf"port {port} is in use on 127\.0\.0\.1.*port=0"):
            front.wait_listening()
        assert front.wait(20) == 2


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70000, "port=70000 is no port"),
        ("no such host", 0, "host=no such host can't be resolved"),
        ("", 0, "host is empty"),
        ("192.0.2.1", 0, "no address of this machine"),
    ],
)
def test_what_cannot_be_bound(host: str, port: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bind_port(host, port)


def test_bound_ports_send_small_chunks_at_once() -> None:
    with (
        bind_port("127.0.0.1", 0) as bound,
        socket.create_connection(bound.getsockname()),
        bound.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_model_without_tokenizer_is_refused(tmp_path: Path) -> None:
    front = spawn_front(FrontSettings(str(tmp_path), "m", KEY, port=0))
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        front.wait_listening()
    assert front.wait(20) == 2
    assert front.wait() == 2


def test_while_loading_it_listens_and_says_so(tmp_path: Path) -> None:
    directory = save(byte_level(), tmp_path, chat_template=None)
    with Stack(directory, leaders=False) as stack:
        for path in ("/ready", "/health", "/v1/models", "/v1/parallel/plan"):
            answer = stack.http.get(path)
            assert answer.status_code == 503 and "loading" in answer.json()["error"]["message"]
            assert "retry-after" in answer.headers
        assert stack.complete("a").status_code == 503
        assert stack.http.get("/metrics").status_code == 200
        with pytest.raises(RunError, match="not ready within"):
            stack.front.wait_ready(0.01)
        stack.engine.start()
        stack.front.wait_ready(20)
        assert stack.http.get("/ready").status_code == 200
        refused = stack.chat("a")
        assert refused.status_code == 400
        assert "no chat template" in refused.json()["error"]["message"]
        assert stack.complete("ab").json()["choices"][0]["text"] == "ab"


def stream_lines(stack: Stack, prompt: str) -> tuple[Any, Iterator[str]]:
    body = {"prompt": prompt, "temperature": 0, "stream": True, "max_tokens": 40}
    request = stack.http.build_request("POST", "/v1/completions", json=body)
    answer = stack.http.send(request, stream=True)
    lines = (line for line in answer.iter_lines() if line)
    return answer, lines


def text_of(lines: Iterator[str]) -> str:
    bodies = [json.loads(line.removeprefix("data: ")) for line in lines if "[DONE]" not in line]
    return "".join(body["choices"][0]["text"] for body in bodies)


def test_a_drain_lets_streams_finish_and_refuses_new_requests(model: Path) -> None:
    with Stack(model) as stack:
        stack.engine.hold(after_steps=2)
        answer, lines = stream_lines(stack, "abcdef")
        first = next(lines)
        stack.front.drain()
        stack.engine.wait_for(lambda: stack.http.get("/ready").status_code == 503)
        refused = stack.complete("a")
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert "shutting down" in refused.json()["error"]["message"]
        stack.engine.release()
        rest = list(lines)
        assert text_of(iter([first, *rest])) == "abcdef" and rest[-1] == "data: [DONE]"
        answer.close()
        assert stack.front.wait(20) == 0
        assert stack.engine.stopped
        with pytest.raises(httpx.ConnectError):
            stack.http.get("/ready")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_what_takes_too_long_is_told(model: Path, number: int) -> None:
    with Stack(model, drain_seconds=0.2) as stack:
        stack.engine.hold(after_steps=2)
        answer, lines = stream_lines(stack, "abcdef")
        next(lines)
        os.kill(stack.front.pid, number)
        rest = list(lines)
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["type"] == "service_unavailable"
        assert rest[-1] == "data: [DONE]"
        answer.close()
        assert stack.front.wait(20) == 0


def test_a_lost_leader_ends_streams_with_an_error_and_the_front(model: Path) -> None:
    with Stack(model) as stack:
        stack.engine.hold(after_steps=2)
        stream = stack.openai.completions.create(
            model="org/small", prompt="abcdef", temperature=0, stream=True
        )
        assert next(stream).choices[0].text
        stack.engine.die()
        with pytest.raises(openai.APIError, match="replica 0 was lost"):
            for _ in stream:
                pass
        assert stack.front.wait(20) == 1
        with pytest.raises(RunError, match="replica 0 was lost"):
            stack.front._wait("never", 1)


def test_a_leader_lost_while_loading_ends_the_front(model: Path) -> None:
    with Stack(model, leaders=False, replicas=2) as stack:
        stack.engine.replicas = 2
        stack.engine.start().die()
        with pytest.raises(RunError, match="was lost"):
            stack.front.wait_ready(20)
        assert stack.front.wait(20) == 1


def test_the_front_ends_with_the_process_that_started_it(model: Path) -> None:
    code = (
        "import sys, time\n"
        "from parallel.server.process import spawn_front\n"
        "from parallel.server.settings import FrontSettings\n"
        f"front = spawn_front(FrontSettings({str(model)!r}, 'm', {KEY!r}, port=0))\n"
        "print(front.pid, *front.wait_listening(), *front.router_address, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        pid, host, port, router_host, router_port = parent.stdout.readline().split()
        assert httpx.get(f"http://{host}:{port}/ready").status_code == 503
        engine = FakeEngine((router_host, int(router_port)), bytes.fromhex(KEY), make_facts(300))
        engine.start()
        parent.kill()
    engine.wait_for(lambda: not Path(f"/proc/{pid}").exists() or _is_zombie(int(pid)))
    engine.join()
    assert engine.stopped


def _is_zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def test_a_front_can_be_ended_at_once(model: Path) -> None:
    front = spawn_front(FrontSettings(str(model), "m", KEY, port=0))
    front.wait_listening()
    assert front.wait(0.01) is None
    front.terminate()
    assert front.wait() == -signal.SIGKILL
    front.drain()


def test_secrets_are_not_shown() -> None:
    settings = FrontSettings("d", "m", KEY, api_key=API_KEY)
    assert KEY not in repr(settings) and API_KEY not in repr(settings)
    assert FrontSettings.from_json(settings.to_json()) == settings


def replica_report(mine: int) -> dict[str, Any]:
    """What the leader of one replica reports of two ranks, of which one is its own."""
    ranks = [
        {
            "rank": rank,
            "memory_bytes": {
                "weights": {"predicted": 10, "measured": 10 if rank == mine else None},
                "kv_cache": {"predicted": 5, "measured": 5 + rank if rank == mine else None},
            },
            "bytes_read": 10 if rank == mine else None,
            "peak_rss_bytes": 99 if rank == mine else None,
        }
        for rank in range(2)
    ]
    planned = [
        {
            "rank": rank,
            "coordinates": {"tp": 0, "pp": 0, "dp": rank},
            "memory_bytes": {"weights": 10, "kv_cache": 5},
        }
        for rank in range(2)
    ]
    row = {"rank": mine, "axis": "tp", "op": "sum", "phase": "decode", "layer": "x"}
    return {
        "plan": {"tp": 1, "pp": 1, "dp": 2, "ranks": planned},
        "ranks": ranks,
        "collectives": [{**row, "calls": 3, "bytes": 30, "seconds": 1.0, "wait_seconds": None}],
        "steps": {"decode": {"predicted_seconds": 1.0, "measured_seconds": 2.0, "steps": 3}},
        "saved": {"one_rank_bytes": 15, "basis": "plan of one rank", "ranks": []},
        "memory_timeline": [{"rank": mine, "seconds": 0.5, "event": "loaded"}],
        "instrument": {"ranks": [{"rank": mine, "steps": 3, "seconds": 3e-3}]},
        "scheduler": {"swapped": 1 + mine},
    }


def test_reports_of_replicas_become_one() -> None:
    merged = merge_reports([replica_report(0), replica_report(1)])
    assert [r["memory_bytes"]["kv_cache"]["measured"] for r in merged["ranks"]] == [5, 6]
    assert [r["peak_rss_bytes"] for r in merged["ranks"]] == [99, 99]
    assert [row["rank"] for row in merged["collectives"]] == [0, 1]
    assert merged["steps"]["decode"]["measured_seconds"] == 4.0
    assert [row["rank"] for row in merged["memory_timeline"]] == [0, 1]
    assert merged["instrument"]["seconds_per_step"] == pytest.approx(1e-3)
    assert merged["saved"]["basis"] == "plan of one rank"
    assert merged["scheduler"] == {"swapped": 3}
