"""Jobs on a real Slurm: two nodes of it on this machine, one rank on each."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from parallel.collectives.addresses import reached_at
from tests.checkpoints import make_checkpoint
from tests.commands import ROOT, environment
from tests.slurm_cluster import SlurmCluster, missing_programs, slurm_cluster
from tests.small_tokenizers import byte_level, save

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason=f"Slurm isn't installed: no {', '.join(missing_programs())}"
)
SMALL = ("engine.requests=2", "engine.step_tokens=64", "memory_gib=1", "collectives=gloo")


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    with slurm_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def server_model(model: Path) -> Path:
    save(byte_level(), model)
    return model


def submit(slurm: SlurmCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    folder = f"folder={slurm.folder / 'jobs'}"
    values = {**slurm.environment, "TESSERA_OUTPUTS": "outputs"}
    values["PATH"] = f"{Path(sys.executable).parent}:{values['PATH']}"
    return subprocess.run(
        [sys.executable, str(ROOT / "launch/submit.py"), folder, *SMALL, *arguments],
        env=environment(**values),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def job_of(done: subprocess.CompletedProcess[str]) -> str:
    found = re.search(r"submitted job (\d+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    return found.group(1)


@pytest.fixture(scope="module", autouse=True)
def limited(slurm: SlurmCluster, server_model: Path) -> str:
    """A server with two minutes to live, started before the others: Slurm looks at limits twice a
    minute."""
    keys = (f"model={server_model}", "tp=1", "port=0", "threads=1", "cores=1")
    return job_of(submit(slurm, *keys, "slurm.minutes=2", "drain_seconds=40", "follow=false"))


def log_of(slurm: SlurmCluster, job: str) -> str:
    (file,) = (slurm.folder / "jobs").glob(f"*-{job}.log")
    return file.read_text()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def rank_process(job: str, rank: int) -> int:
    """The process of a job's rank."""
    wanted = {f"SLURM_JOB_ID={job}", f"RANK={rank}"}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            held = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if wanted <= set(held) and any(w.endswith("launch/serve.py") for w in words):
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank} of job {job}")


def test_slurm_serves_the_default_model_over_two_nodes_and_drains(slurm: SlurmCluster) -> None:
    port = free_port()
    exact = "precision.weights=fp32"
    done = submit(slurm, "tp=2", "nodes=2", f"port={port}", exact)
    assert done.returncode == 0, done.stdout + done.stderr
    # It listens on all addresses; where clients reach it, is what it says.
    address = f"http://{reached_at('0.0.0.0')}:{port}"
    assert f"ready {address}\n" in done.stdout
    job = job_of(done)
    nodes = slurm.call("squeue", "--noheader", "--format=%N %D", "--jobs", job).split()
    assert nodes == ["n[1-2]", "2"]
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    answer = client.chat.completions.create(
        model="SmolLM2-135M-Instruct",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=8,
        temperature=0,
    )
    assert "Paris" in str(answer.choices[0].message.content)
    under_way = client.completions.create(
        model="SmolLM2-135M-Instruct",
        prompt="Once",
        max_tokens=30,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    next(under_way)
    slurm.call("scancel", job)
    *_, finished, usage = under_way
    assert finished.choices[0].finish_reason == "length"
    assert usage.usage is not None and usage.usage.completion_tokens == 30
    assert slurm.wait(job, "CANCELLED", "COMPLETED", "FAILED") == "CANCELLED"
    _gone(port)
    assert "Traceback" not in log_of(slurm, job)


def _gone(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) != 0:
                return
        assert time.monotonic() < end, "the server still listens"
        time.sleep(0.2)


def test_slurm_runs_a_pipeline_over_two_nodes(slurm: SlurmCluster, model: Path) -> None:
    prompts, out = slurm.folder / "prompts.jsonl", slurm.folder / "out.jsonl"
    prompts.write_text('{"prompt_token_ids": [5, 6, 7], "max_tokens": 6}\n')
    job_keys = ("job=generate", f"input={prompts}", f"output={out}", f"model={model}")
    done = submit(slurm, *job_keys, "pp=2", "nodes=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert slurm.state(job_of(done)) == "COMPLETED"
    (line,) = out.read_text().splitlines()
    assert len(json.loads(line)["token_ids"]) == 6


def test_slurm_ranks_of_two_nodes_start_anew_and_the_last_death_is_named(
    slurm: SlurmCluster, server_model: Path
) -> None:
    port = free_port()
    job = serve_with_a_restart(slurm, server_model, port)
    os.kill(rank_process(job, 1), signal.SIGKILL)
    restart = restarted(slurm, job, port)
    assert restart["restarts"] == 1 and restart["seconds"] > restart["loading_seconds"] > 0
    assert len(re.findall(r"rank 1 \(.*\) died", log_of(slurm, job))) == 1
    os.kill(rank_process(job, 0), signal.SIGKILL)
    assert slurm.wait(job, "FAILED", "COMPLETED", "CANCELLED") == "FAILED"
    assert re.search(r"rank 0 \(.*\) died of SIGKILL", log_of(slurm, job))


def test_slurm_requeues_a_job_whose_rank_died(slurm: SlurmCluster, server_model: Path) -> None:
    port = free_port()
    job = serve_with_a_restart(slurm, server_model, port, "slurm.requeue=true")
    os.kill(rank_process(job, 1), signal.SIGKILL)
    assert slurm.wait(job, "PENDING", "FAILED", "CANCELLED") == "PENDING"
    _gone(port)
    _steps_ended(job)
    # Slurm holds a requeued job back for two minutes, longer than the last word of its old script.
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")
    restart = restarted(slurm, job, port)
    assert restart["restarts"] == 1 and restart["seconds"] > restart["loading_seconds"] > 0
    assert log_of(slurm, job).count("goes back into the queue") == 1
    folder = slurm.folder / "jobs" / f"serve-{job}"
    for log in ((folder / f"rank{rank}.log").read_text() for rank in (0, 1)):
        assert [log.count(f"start {n} of this run") for n in (1, 2, 3)] == [1, 1, 0]
    slurm.call("scancel", job)
    assert slurm.wait(job, "PENDING", "CANCELLED", "FAILED") == "CANCELLED"


def _steps_ended(job: str) -> None:
    """Slurm's own processes of the job are gone, and with them what they had to tell."""
    end = time.monotonic() + 60
    while any(f"slurmstepd: [{job}." in words for words in _command_lines()):
        assert time.monotonic() < end, f"steps of job {job} are still there"
        time.sleep(0.1)


def _command_lines() -> Iterator[str]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield file.read_bytes().decode(errors="replace")


def serve_with_a_restart(slurm: SlurmCluster, model: Path, port: int, *more: str) -> str:
    where = (f"model={model}", "tp=2", "nodes=2", f"port={port}", "host=127.0.0.1")
    done = submit(slurm, *where, "restarts=1", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return job_of(done)


def restarted(slurm: SlurmCluster, job: str, port: int) -> dict[str, Any]:
    """`restart` of the report of the job's second server, which answers."""
    end = time.monotonic() + 120
    while log_of(slurm, job).count("ready http://") < 2:
        assert time.monotonic() < end, log_of(slurm, job)
        assert slurm.state(job) in ("PENDING", "CONFIGURING", "RUNNING"), log_of(slurm, job)
        time.sleep(0.2)
    address = f"http://127.0.0.1:{port}/v1"
    body = {"model": "qwen3-float32", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}
    answer = httpx.post(f"{address}/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 4
    restart: dict[str, Any] = httpx.get(f"{address}/parallel/report", timeout=60).json()["restart"]
    return restart


def test_slurm_gets_no_job_that_cannot_fit(slurm: SlurmCluster) -> None:
    every = ("squeue", "--noheader", "--states=all", "--format=%i")
    before = slurm.call(*every).split()
    done = submit(slurm, "tp=2", "nodes=2", "memory_gib=0.01")
    assert done.returncode == 2 and "memory_gib" in done.stderr
    assert slurm.call(*every).split() == before
    uneven = submit(slurm, "tp=3", "nodes=2")
    assert uneven.returncode == 2 and "spread evenly over 2 nodes" in uneven.stderr


def test_slurm_refusals_are_told(slurm: SlurmCluster) -> None:
    done = submit(slurm, "tp=2", "nodes=2", "slurm.partition=elsewhere")
    assert done.returncode == 1
    assert "Slurm refused the job" in done.stderr and "partition" in done.stderr


def test_slurm_ends_a_server_ahead_of_its_time(slurm: SlurmCluster, limited: str) -> None:
    assert slurm.wait(limited, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED") == "COMPLETED"
    log = log_of(slurm, limited)
    assert log.count("ready http://") == log.count("SIGTERM: finishing what runs") == 1
    assert "Report: tp=1" in log and "Traceback" not in log
