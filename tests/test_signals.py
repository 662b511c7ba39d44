"""What a signal does before a rank can be told by its peers."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest

from launch import rank as launch_rank
from launch import serve_host
from launch.schema import RunKeys
from launch.serve_host import ServeHost
from parallel.layout.degrees import Degrees
from tests.checkpoints import make_checkpoint
from tests.commands import ROOT
from tests.engine_case import plan_for

Signalled = Callable[[signal.Signals], None]


@pytest.fixture
def signalled(monkeypatch: pytest.MonkeyPatch) -> list[Signalled]:
    """What `run_rank` would do at a signal; nothing waits and nothing ends."""
    acts: list[Signalled] = []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(launch_rank, "on_termination", acts.append)
    return acts


def test_a_signal_ends_a_rank_that_no_lifeline_could_end(
    signalled: list[Signalled], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(launch_rank, "end_process", ended.append)

    class Job:
        mesh = SimpleNamespace(exchange=SimpleNamespace(get=lambda key: None))
        device = SimpleNamespace(name="cpu")

        def close(self) -> None:
            ended.append("closed")

    def joining(settings: object, plan: object, host: object, e: Event, worker: object) -> Job:
        signalled[0](signal.SIGTERM)
        assert ended == [""]
        e.set()
        signalled[0](signal.SIGTERM)
        return Job()

    monkeypatch.setattr(launch_rank, "_start", joining)
    plan = plan_for(str(make_checkpoint("qwen3", tmp_path)), Degrees())
    code = launch_rank.run_rank(
        RunKeys(), tmp_path, plan, launch_rank.Host, work=lambda job, host: None
    )
    assert (code, ended) == (0, ["", "closed"])


TWICE = """
import os, signal, threading
from launch.signals import on_termination
acted = threading.Event()
on_termination(lambda number: (print(number.name, flush=True), acted.set()))
os.kill(os.getpid(), signal.SIGTERM)
assert acted.wait(10)
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_signal_that_comes_again_is_heard_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "SIGTERM\n", "")


def test_a_server_that_loads_has_nothing_to_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Front:
        def drain(self) -> None:
            said.append("drain")

    monkeypatch.setattr(serve_host, "leave", said.append)
    monkeypatch.setattr(serve_host, "show_report", lambda *_: None)
    monkeypatch.setattr(ServeHost, "_announce", lambda _: None)
    host = ServeHost.__new__(ServeHost)
    host._front, host._loaded = Front(), False  # type: ignore[assignment]
    host.terminate("SIGTERM")
    assert said == ["stopped by SIGTERM before it served"]
    host.loaded({})
    host.terminate("SIGTERM")
    assert said[1:] == ["drain"]
