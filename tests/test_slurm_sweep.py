"""A sweep whose points are jobs of a real Slurm: two nodes of it on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.commands import ROOT, command, environment
from tests.slurm_cluster import SlurmCluster, missing_programs, slurm_cluster

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason=f"Slurm isn't installed: no {', '.join(missing_programs())}"
)
SMALL = (
    *("memory_gib=1", "threads=1", "engine.step_tokens=32", "engine.requests=2"),
    *("workload.input_tokens=8", "workload.output_tokens=4", "workload.concurrency=1"),
    *("repeats=1", "baseline=none"),
)


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    with slurm_cluster() as cluster:
        yield cluster


def sweep(
    slurm: SlurmCluster, model: Path, folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=5")
    needs = ("hydra.launcher.mem_gb=3", "hydra.launcher.cpus_per_task=1")
    keys = (f"model={model}", *SMALL, *launcher, *needs, f"hydra.sweep.dir={folder}")
    path = f"{Path(sys.executable).parent}:{slurm.environment['PATH']}"
    return subprocess.run(
        command("measure", "-m", *keys, *arguments),
        env=environment(**{**slurm.environment, "PATH": path}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_slurm_runs_a_sweep(slurm: SlurmCluster, tmp_path: Path) -> None:
    model = make_checkpoint("qwen3", tmp_path / "models")
    folder = tmp_path / "sweep"
    done = sweep(slurm, model, folder, "tp=1", "engine.block_tokens=8,16")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["state"] for line in lines] == ["measured", "measured"]
    assert {line["overrides"][-1] for line in lines} == {
        "engine.block_tokens=8",
        "engine.block_tokens=16",
    }
    assert all(line["result"]["layout"]["tokens_per_second"]["measured"] > 0 for line in lines)
    compared = json.loads((folder / "comparison.json").read_text())
    assert len(compared["entries"]) == 2 and not compared["left"]
    # Each was a job of its own: Slurm knows both.
    jobs = slurm.call("scontrol", "--oneliner", "show", "job").splitlines()
    assert sum("JobState=COMPLETED" in job for job in jobs) == 2


def test_slurm_points_that_never_start_have_failed(slurm: SlurmCluster, tmp_path: Path) -> None:
    model = make_checkpoint("qwen3", tmp_path / "models")
    folder = tmp_path / "sweep"
    done = sweep(slurm, model, folder, "tp=1,2", "hydra.launcher.partition=nowhere")
    assert done.returncode == 1
    assert "invalid partition" in done.stderr + done.stdout
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["state"] for line in lines] == ["failed", "failed"]
    assert all("never started" in line["reason"] for line in lines)
