"""`launch/generate.py` from the shell: files in, files out, the report, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import make_checkpoint, reference
from tests.commands import ROOT, command, environment, run

PROMPTS = [tuple(range(3, 3 + n)) for n in (4, 30, 1)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3", tmp_path_factory.mktemp("models"))


def write_prompts(path: Path, **sampling: Any) -> Path:
    rows = [{"prompt_token_ids": list(p), "ignore_eos": True, **sampling} for p in PROMPTS]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def limits(model: Path) -> list[str]:
    return [f"model={model}", "memory_gib=2", "engine.step_tokens=32", "collectives=gloo"]


def test_tokens_logprobs_and_report_of_two_ranks(model: Path, tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.jsonl", max_tokens=12, logprobs=1)
    out, report_file = tmp_path / "out.jsonl", tmp_path / "report.json"
    trace_file = tmp_path / "trace.json"
    done = run(
        "generate",
        *limits(model),
        "tp=2",
        f"input={source}",
        f"output={out}",
        f"report={report_file}",
        f"trace={trace_file}",
        "trace_steps=3",
    )
    assert done.returncode == 0, done.stderr
    for index, (row, prompt) in enumerate(zip(read_rows(out), PROMPTS, strict=True)):
        assert row["index"] == index and row["text"] is None
        assert row["token_ids"] == reference(model, prompt, 12)[1]
        assert row["finish_reason"] == "length"
        assert len(row["logprobs"]) == 12 and max(row["logprobs"]) <= 0
    report = json.loads(report_file.read_text())
    assert set(report) >= {"plan", "ranks", "collectives", "steps"}
    for rank in report["ranks"]:
        for cause in ("weights", "kv_cache"):
            figures = rank["memory_bytes"][cause]
            assert figures["predicted"] == figures["measured"] > 0
        assert rank["peak_rss_bytes"] > rank["memory_bytes"]["weights"]["measured"]
    rows = {(r["rank"], r["op"], r["phase"], r["layer"]): r for r in report["collectives"]}
    assert rows[0, "all_reduce", "decode", "ffn"]["calls"] == 4 * report["steps"]["decode"]["steps"]
    assert rows[1, "all_reduce", "decode", "ffn"]["wait_seconds"] is not None
    assert sum(phase["rows"] for phase in report["steps"].values()) == 12 * len(PROMPTS)
    assert "to the byte" in done.stdout
    events = [e for e in json.loads(trace_file.read_text())["traceEvents"] if e["ph"] == "X"]
    steps = sum(phase["steps"] for phase in report["steps"].values())
    for rank in (0, 1):
        numbers = {e["args"]["step"] for e in events if e["pid"] == rank}
        assert numbers == {steps - 2, steps - 1, steps}


def test_sampling_is_the_same_in_every_layout(model: Path, tmp_path: Path) -> None:
    source = write_prompts(
        tmp_path / "in.jsonl", max_tokens=16, temperature=0.9, top_p=0.95, top_k=50, seed=11
    )
    answers = []
    for layout in (["tp=1"], ["tp=2"], ["pp=2"]):
        out = tmp_path / f"{len(answers)}.jsonl"
        done = run("generate", *limits(model), *layout, f"input={source}", f"output={out}")
        assert done.returncode == 0, done.stderr
        answers.append([row["token_ids"] for row in read_rows(out)])
    assert answers[0] == answers[1] == answers[2]
    greedy = [reference(model, p, 16)[1] for p in PROMPTS]
    assert answers[0] != greedy


def test_three_ranks_in_two_unlike_stages(model: Path, tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.jsonl", max_tokens=8)
    out, report_file = tmp_path / "out.jsonl", tmp_path / "report.json"
    layout = ["stage_tp=[2,1]", f"report={report_file}"]
    done = run("generate", *limits(model), *layout, f"input={source}", f"output={out}")
    assert done.returncode == 0, done.stderr
    expected = [reference(model, p, 8)[1] for p in PROMPTS]
    assert [row["token_ids"] for row in read_rows(out)] == expected
    report = json.loads(report_file.read_text())
    for rank in report["ranks"]:
        for cause in ("weights", "kv_cache"):
            figures = rank["memory_bytes"][cause]
            assert figures["predicted"] == figures["measured"] > 0
    sends = [r["rank"] for r in report["collectives"] if r["op"] == "send"]
    assert set(sends) == {0} and "stage_tp=[2,1] dp=1: saves" in done.stdout


def test_torchrun_must_start_whole_replicas(model: Path, tmp_path: Path) -> None:
    source, out = write_prompts(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    layout = [*limits(model), "stage_tp=[2,1]", f"input={source}", f"output={out}"]
    done = run("generate", *layout, torchrun=2)
    assert done.returncode != 0
    assert "stage_tp=[2,1] dp=1 takes 3 ranks" in done.stderr
    assert "--nproc-per-node 3" in done.stderr


def test_torchrun_with_replicas(model: Path, tmp_path: Path) -> None:
    source, out = write_prompts(tmp_path / "in.jsonl", max_tokens=8), tmp_path / "out.jsonl"
    done = run("generate", *limits(model), "+dp=2", f"input={source}", f"output={out}", torchrun=2)
    assert done.returncode == 0, done.stderr
    expected = [reference(model, p, 8)[1] for p in PROMPTS]
    assert [row["token_ids"] for row in read_rows(out)] == expected


def test_more_ranks_than_torchrun_started(model: Path, tmp_path: Path) -> None:
    source = write_prompts(tmp_path / "in.jsonl")
    done = run("generate", *limits(model), "tp=2", f"input={source}", "output=x.jsonl", torchrun=1)
    assert done.returncode != 0
    assert "tp=2 needs 2 ranks; torchrun started 1" in done.stderr
    assert "--nproc-per-node 2" in done.stderr


def test_a_sweep_under_torchrun_is_refused(model: Path) -> None:
    done = run("generate", "-m", "tp=1,2", torchrun=1)
    assert done.returncode != 0 and "python launch/generate.py -m" in done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt_token_ids": [1], "temperature": -1}', ["line 1", "temperature=-1", "from 0"]),
        ('{"prompt_token_ids": [1], "max_tokns": 3}', ["line 1", "did you mean 'max_tokens'"]),
        ('{"prompt_token_ids": [1], "max_tokens": "three"}', ["line 1", "wrong type"]),
        ('{"prompt_token_ids": [503]}', ["line 1", "0 to 502"]),
        ('{"prompt": "text"}', ["tokenizer.json", "prompt_token_ids"]),
        ("{}", ["either 'prompt' or 'prompt_token_ids'"]),
        ("not json", ["line 1 is not JSON"]),
        (json.dumps({"prompt_token_ids": [1] * 300}), ["300 tokens", "256", "shorten"]),
        ("", ["no request"]),
    ],
)
def test_bad_lines_are_found_before_loading(
    line: str, words: list[str], model: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(line + "\n")
    out.write_text("kept")
    done = run("generate", *limits(model), "tp=1", f"input={source}", f"output={out}")
    assert done.returncode == 2, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_text() == "kept"


def test_missing_values_and_folders(model: Path, tmp_path: Path) -> None:
    done = run("generate", f"model={model}")
    assert done.returncode == 2 and "input" in done.stderr
    done = run("generate", f"model={model}", "tp=1", "input=/nowhere", "output=o.jsonl")
    assert done.returncode == 2 and "/nowhere" in done.stderr
    done = run("generate", f"model={model}", "tp=1", "input=x", "output=/nowhere/o.jsonl")
    assert done.returncode == 2 and "folder doesn't exist" in done.stderr


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in found]


def start_long_run(model: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """A run that has much to do, past the start of its ranks."""
    source = write_prompts(tmp_path / "in.jsonl", max_tokens=200)
    rows = read_rows(source) * 40
    source.write_text("".join(json.dumps(r) + "\n" for r in rows))
    output = tmp_path / "out.jsonl"
    process = subprocess.Popen(
        command("generate", *limits(model), "tp=2", f"input={source}", f"output={output}"),
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for printed in process.stdout:
        if "ranks over gloo" in printed:
            break
    return process


@pytest.mark.parametrize(("rank", "words"), [(0, "died of SIGKILL"), (1, "died; ending the job")])
def test_a_killed_rank_is_named_and_ends_the_job(
    model: Path, tmp_path: Path, rank: int, words: str
) -> None:
    process = start_long_run(model, tmp_path)
    victim = children(process.pid)[rank]
    os.kill(victim, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"rank {rank} (pid {victim}" in errors and words in errors
    assert not (tmp_path / "out.jsonl").exists()


def test_an_interrupted_run_fails_and_writes_nothing(model: Path, tmp_path: Path) -> None:
    process = start_long_run(model, tmp_path)
    ranks = children(process.pid)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "nothing was written" in errors and "Traceback" not in errors
    assert not (tmp_path / "out.jsonl").exists()
    assert not [p for p in ranks if Path(f"/proc/{p}").exists()]


def test_a_number_too_large_to_send_is_refused_before_the_start(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"prompt_token_ids": [1], "seed": 1 << 100}) + "\n")
    model = make_checkpoint("qwen3", tmp_path)
    done = run("generate", f"model={model}", f"input={source}", f"output={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "line 1: seed=" in done.stderr and "Traceback" not in done.stderr
