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
import torch
from torch.distributed.launcher.api import LaunchConfig

from launch import rank as launch_rank
from launch import serve_host
from launch.ranks import allow_drain
from launch.schema import RunKeys
from launch.serve_host import ServeHost
from parallel.layout.degrees import Degrees
from tests.checkpoints import make_checkpoint
from tests.commands import ROOT, environment
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


DRAINING = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("ready", flush=True)
signal.sigwait([signal.SIGTERM])
print("drained", flush=True)
sys.exit(0)
"""


def test_a_signal_to_what_takes_torchruns_place_ends_it_well(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(DRAINING)
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.on_node", "--nproc-per-node", "1", str(script)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "drained\n"), err
    assert "Traceback" not in err and "SIGKILL" not in err


def test_ranks_that_drain_for_long_are_not_killed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    for arguments, before, after in (
        (["serve.py", "tp=2"], {}, {}),
        (["serve.py", "drain_seconds=20"], {}, {}),
        (["serve.py", "drain_seconds=1", "++drain_seconds=45.5"], {}, {name: "56"}),
        (["serve.py", "drain_seconds=60"], {name: "5"}, {name: "5"}),
        (["serve.py", "drain_seconds=long"], {}, {}),
    ):
        variables = dict(before)
        allow_drain(arguments, variables)
        assert variables == after, arguments
    monkeypatch.setenv(name, "56")
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1)
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12):
        assert config.shutdown_timeout == 56


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
