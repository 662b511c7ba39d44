"""The submit command without a scheduler: scripts, manifests, what it refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from hydra.core.override_parser.overrides_parser import OverridesParser

from launch.entry import known_keys
from launch.job_command import SCHEMAS, check_job_keys, job_command
from launch.job_resources import Resources, resources
from launch.schema import JobKind, KubernetesKeys, SlurmKeys, SubmitBackend, SubmitCommand
from launch.slurm import SlurmJob
from launch.submit import main
from parallel.errors import ConfigError
from parallel.planner.search import Wanted
from tests.commands import ROOT, environment, run
from tests.specs import toy_planner


def test_resources_are_what_the_plan_needs() -> None:
    plan = toy_planner(devices=4).search(Wanted(2, 2, 1)).best()
    needed = resources(plan, nodes=2)
    most = max(rank.total for rank in plan.memory)
    assert (needed.nodes, needed.ranks, needed.gpus) == (2, 2, 0)
    assert 2 * most <= needed.memory_bytes <= 2.3 * most
    with pytest.raises(ConfigError, match="spread evenly over 3 nodes"):
        resources(plan, nodes=3)


def test_a_job_gets_the_keys_its_launcher_knows_and_the_plans_degrees() -> None:
    plan = toy_planner(devices=4).search(Wanted(2, 2, 1)).best()
    given = ["+tp=2", "+port=9", "slurm.minutes=5", "job=serve", "engine.requests=3"]
    needed = Resources(2, 2, 0, 2, 1 << 30)
    command = job_command(JobKind.serve, given, plan, needed, restarts=1)
    assert set(command.arguments) == {
        *("port=9", "engine.requests=3", "host=0.0.0.0", "tp=2", "pp=2", "dp=1")
    }
    words = command.words("python", "0", "head", "29500")
    assert words[words.index("--nnodes") + 1] == "2"
    assert words[words.index("--max-restarts") + 1] == "1"
    assert "launch/serve.py" in words
    generate = job_command(JobKind.generate, ["input=a", "job=generate"], plan, needed, restarts=0)
    assert set(generate.arguments) == {"input=a", "tp=2", "pp=2", "dp=1"}


def test_every_key_is_read_or_refused() -> None:
    """By the job and the backend at once; one that is refused says whose it is."""
    schemas = {kind: set(known_keys(schema)) for kind, schema in SCHEMAS.items()}
    for job, backend in product(JobKind, SubmitBackend):
        for key in known_keys(SubmitCommand):
            jobs = [kind for kind, keys in schemas.items() if key in keys]
            group = key.partition(".")[0]
            backends = [b for b in SubmitBackend if b.value == group]
            if key in ("folder", "follow"):
                backends = [SubmitBackend.slurm]
            if key != "restarts" and jobs and job not in jobs:
                words = " and ".join(f"job={kind.value}" for kind in jobs)
            elif backends and backend not in backends:
                words = f"backend={backends[0].value}"
            else:
                check_job_keys(job, backend, ["tp=2", f"++{key}=1"])
                continue
            with pytest.raises(ConfigError, match=f"^{key} is a key of {words}, not of "):
                check_job_keys(job, backend, ["tp=2", f"++{key}=1"])


def test_a_dry_run_prints_the_batch_script(tmp_path: Path) -> None:
    keys = ("slurm.minutes=30", "slurm.partition=gpu", "slurm.options=[--exclusive]")
    done = run("submit", "submit=dry", "tp=2", "nodes=2", f"folder={tmp_path}", *keys)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "#!/bin/bash"
    for option in (
        "nodes=2",
        "ntasks-per-node=1",
        "time=30",
        "partition=gpu",
        "signal=TERM@50",
        "exclusive",
    ):
        assert f"#SBATCH --{option}" in lines
    assert "--node-rank $SLURM_NODEID" in done.stdout
    assert "--max-restarts 0 " in done.stdout and "#SBATCH --no-requeue" in lines
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("requeue", "by_torchrun"), [("true", 0), ("false", 3)])
def test_either_slurm_or_torchrun_restarts(tmp_path: Path, requeue: str, by_torchrun: int) -> None:
    keys = ("restarts=3", f"slurm.requeue={requeue}", f"folder={tmp_path}")
    done = run("submit", "submit=dry", "tp=2", "nodes=2", *keys)
    assert done.returncode == 0, done.stderr
    assert f"--max-restarts {by_torchrun} " in done.stdout
    # The script itself, where srun ends with a code and scontrol says what it was asked.
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, line in (("srun", "exit $CODE"), ("scontrol", 'echo "asked: $@"')):
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    for code, so_far, again in ((0, 0, 0), (1, 0, 1), (2, 0, 0), (137, 2, 1), (1, 3, 0)):
        facts = {"CODE": str(code), "SLURM_RESTART_COUNT": str(so_far), "SLURM_JOB_ID": "17"}
        path = f"{commands}:{os.environ['PATH']}"
        ended = subprocess.run(
            ["bash", "-c", done.stdout],
            env=environment(PATH=path, SLURM_JOB_NODELIST="n1", **facts),
            capture_output=True,
            text=True,
        )
        assert ended.returncode == code, ended.stderr
        assert ended.stdout.count("asked: requeue 17") == (again if requeue == "true" else 0)


def test_a_job_runs_where_it_was_submitted_and_its_run_has_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script as bash reads it, with programs that say what they were asked."""
    here, commands = tmp_path / "it's here, $HOME", tmp_path / "commands"
    here.mkdir()
    commands.mkdir()
    programs = {
        "srun": 'shift 3; exec "$@"',
        "scontrol": "echo localhost",
        "python": 'pwd; printf "%s\\n" "$@"',
    }
    for name, line in programs.items():
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "executable", str(commands / "python"))
    plan = toy_planner(devices=2).search(Wanted(2, 1, 1)).best()
    needed = Resources(1, 2, 0, 2, 1 << 30)
    command = job_command(JobKind.serve, [], plan, needed, restarts=0)
    job = SlurmJob("serve", command, needed, SlurmKeys(), here / "jobs", 0.0, keeps_run=True)
    facts = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n1", "SLURM_NODEID": "0"}
    done = subprocess.run(
        ["bash", "-c", job.script()],
        env=environment(**{**facts, "PATH": f"{commands}:{os.environ['PATH']}"}),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    _, folder, *words = done.stdout.splitlines()
    assert folder == str(here) and str(ROOT / "launch/serve.py") in words
    override = OverridesParser.create().parse_override(words[-1])
    assert override.key_or_group == "run_folder"
    assert override.value() == str(here / "jobs/serve-17")


def rendered(*arguments: str) -> list[dict[str, Any]]:
    done = run("submit", "backend=kubernetes", *arguments)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_one_node_is_a_deployment() -> None:
    deployment, service = rendered("tp=2", "drain_seconds=40", "kubernetes.model_claim=models")
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 40
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    assert {m["mountPath"] for m in container["volumeMounts"]} == {"/dev/shm", "/models"}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


def test_several_nodes_are_a_leader_worker_set() -> None:
    group, service = rendered("tp=2", "pp=2", "nodes=2")
    assert (group["kind"], service["kind"]) == ("LeaderWorkerSet", "Service")
    template = group["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 2
    leader = template["leaderTemplate"]["spec"]["containers"][0]
    worker = template["workerTemplate"]["spec"]["containers"][0]
    assert "readinessProbe" in leader and "readinessProbe" not in worker
    assert '--node-rank "$LWS_WORKER_INDEX"' in worker["command"][-1]
    assert service["spec"]["selector"]["role"] == "leader"


def test_what_ends_is_a_job_set() -> None:
    (jobs,) = rendered("job=measure", "tp=2", "nodes=2", "restarts=1")
    assert jobs["kind"] == "JobSet"
    job = jobs["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (2, 2, "Indexed")
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert jobs["spec"]["failurePolicy"]["maxRestarts"] == 1
    # Not torchrun too: twice would be more than asked for.
    (container,) = job["template"]["spec"]["containers"]
    assert "--max-restarts 0 " in container["command"][-1]


def test_a_skypilot_task_from_the_shell() -> None:
    keys = ("cluster=8xh100", "tp=2", "skypilot.image=registry/tessera:1")
    done = run("submit", "backend=skypilot", *keys)
    assert done.returncode == 0, done.stderr
    task = yaml.safe_load(done.stdout)
    assert task["resources"]["accelerators"] == {"H100": 2}
    assert task["resources"]["image_id"] == "docker:registry/tessera:1"


@pytest.mark.parametrize("launcher", ["generate", "serve"])
def test_a_mistyped_key_from_the_shell(launcher: str) -> None:
    """Other launchers' own tests do the same."""
    done = run(launcher, "+memory_gb=1")
    assert done.returncode == 2 and "did you mean 'memory_gib'?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("job=generate", "tp=1"), "input is not given"),
        (("job=bake",), "job"),
        (("tp=4", "nodes=3"), "spread evenly over 3 nodes"),
        (("tp=8", "pp=2", "cluster=2x8xa100", "nodes=1"), "has 8 devices; give nodes=2 or more"),
        (("restarts=-1", "tp=1"), "restarts=-1 is negative"),
        (("slurm.partitoin=x",), "did you mean 'slurm.partition'"),
        (("job=generate", "port=9"), "port is a key of job=serve, not of job=generate"),
    ],
)
def test_refusals(arguments: tuple[str, ...], words: str) -> None:
    done = run("submit", *arguments, "submit=dry")
    assert done.returncode == 2
    assert words in done.stderr


KUBERNETES, SKYPILOT = SubmitBackend.kubernetes, SubmitBackend.skypilot


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (SubmitCommand(port=70000), "port=70000 is out of range"),
        (SubmitCommand(drain_seconds=-1.0), "drain_seconds=-1.0 is negative"),
        (SubmitCommand(cores=0), "cores=0 is out of range; give at least 1"),
        (SubmitCommand(slurm=SlurmKeys(minutes=-5)), "slurm.minutes=-5 is negative"),
        (SubmitCommand(slurm=SlurmKeys(options=["exclusive"])), "say '--exclusive'"),
        (SubmitCommand(api_key_file="nowhere"), "api_key_file=nowhere: No such file"),
        (SubmitCommand(report="nowhere/r.json"), "report=nowhere/r.json: its folder"),
        (
            SubmitCommand(job=JobKind.generate, input="nowhere", output="x"),
            "input=nowhere is not a file",
        ),
        (SubmitCommand(backend=KUBERNETES, port=0), "port=0: others must know"),
        (SubmitCommand(backend=SKYPILOT, port=0), "port=0: others must know"),
        (
            SubmitCommand(backend=KUBERNETES, kubernetes=KubernetesKeys(start_minutes=0)),
            "kubernetes.start_minutes=0 is out of range",
        ),
    ],
)
def test_what_a_job_would_refuse_is_refused_before_it_waits(
    settings: SubmitCommand, words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        main(settings)


def test_a_model_outside_of_its_volume_is_refused() -> None:
    """And files of a container needn't be here."""
    done = run(
        *("submit", "backend=kubernetes", "kubernetes.model_claim=models", "report=/data/r.json"),
        *("cluster=8xh100", f"model={ROOT / 'parallel/conversion/SmolLM2-135M-Instruct'}"),
    )
    assert done.returncode == 2 and "is not below kubernetes.model_path=/models" in done.stderr
