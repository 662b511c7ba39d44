"""`launch/measure.py` from the shell: what it measures, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import hydra
import pytest

from launch.schema import MeasureCommand
from tests.checkpoints import make_checkpoint
from tests.commands import ROOT, run

CONTRACT = (ROOT / "docs/contract.md").read_text()
REPEATS, CLIENTS = 2, 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3", tmp_path_factory.mktemp("models"))


def measure(model: Path, *arguments: str, torchrun: int | None = None) -> CompletedProcess[str]:
    return run(
        "measure",
        f"model={model}",
        "memory_gib=1",
        "threads=1",
        "engine.step_tokens=32",
        "engine.requests=4",
        "workload.input_tokens=20",
        "workload.output_tokens=6",
        f"workload.concurrency={CLIENTS}",
        f"repeats={REPEATS}",
        *arguments,
        torchrun=torchrun,
    )


@pytest.fixture(scope="module")
def measured(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two ranks against one, with every file that can be written."""
    folder = tmp_path_factory.mktemp("measured")
    files = [f"{key}={folder / name}" for key, name in FILES.items()]
    done = measure(model, "tp=2", f"run_folder={folder / 'run'}", *files)
    assert done.returncode == 0, done.stderr
    return {
        "body": json.loads((folder / "out.json").read_text()),
        "report": json.loads((folder / "report.json").read_text()),
        "folder": folder,
        "stdout": done.stdout,
    }


FILES = {
    "output": "out.json",
    "page": "page.html",
    "picture": "picture.svg",
    "report": "report.json",
}


def test_saved_weights_are_what_the_plans_differ_by(measured: dict[str, Any]) -> None:
    body = measured["body"]
    (one,) = body["baseline"]["plan"]["ranks"]
    for saved, rank in zip(body["saved"], body["layout"]["plan"]["ranks"], strict=True):
        weights = one["memory_bytes"]["weights"] - rank["memory_bytes"]["weights"]
        assert saved["bytes"]["weights"] == {"predicted": weights, "measured": weights, "error": 0}
        cache = saved["bytes"]["kv_cache"]
        assert cache["predicted"] == cache["measured"] == one["memory_bytes"]["kv_cache"] // 2


def test_the_same_steps_are_run_without_communication(measured: dict[str, Any]) -> None:
    """Every rank ran as many steps alone as the engine has made, and as many tokens."""
    body = measured["body"]
    phases = body["layout"]["phases"]
    assert set(phases) == {"prefill", "decode"}
    for phase, costs in phases.items():
        assert [(r["rank"], r["steps"]) for r in costs["ranks"]] == [
            (0, costs["steps"]),
            (1, costs["steps"]),
        ]
        assert measured["report"]["steps"][phase]["steps"] == costs["steps"]
        parts = ("compute", "imbalance", "host", "pipeline", "communication")
        total = sum(costs[f"{part}_ms"]["measured"] for part in parts)
        assert total == pytest.approx(costs["step_ms"]["measured"])
        assert costs["compute_ms"]["measured"] > 0
    tokens = sum(c["steps"] * c["rows_per_step"] for c in phases.values())
    assert tokens == pytest.approx(outputs())


def outputs() -> int:
    """Tokens that the workload generates: its lengths are the plan's."""
    from parallel.planner.load import Load

    load = Load(CLIENTS, 20, 6)
    return sum(load.lengths(i)[1] for i in range(CLIENTS * REPEATS))


def test_taking_communication_away_is_counted_nowhere(measured: dict[str, Any]) -> None:
    """The ledger has the steps of the engine: two sums per layer, the embedding's, the logits'."""
    report = measured["report"]
    for phase, step in report["steps"].items():
        calls = sum(
            row["calls"]
            for row in report["collectives"]
            if row["phase"] == phase and row["rank"] == 0 and row["op"] == "all_reduce"
        )
        assert calls == step["steps"] * (2 * 4 + 1)


def test_one_rank_alone_has_nothing_to_communicate(measured: dict[str, Any]) -> None:
    for costs in measured["body"]["baseline"]["phases"].values():
        assert costs["communication_ms"]["measured"] == pytest.approx(0, abs=1e-9)
        assert costs["imbalance_ms"]["measured"] == pytest.approx(0, abs=1e-9)


def test_every_figure_has_its_error(measured: dict[str, Any]) -> None:
    def figures(value: Any) -> list[dict[str, Any]]:
        if isinstance(value, dict):
            if set(value) == {"predicted", "measured", "error"}:
                return [value]
            return [f for entry in value.values() for f in figures(entry)]
        return [f for entry in value for f in figures(entry)] if isinstance(value, list) else []

    found = figures(measured["body"])
    assert len(found) > 40
    for figure in found:
        predicted, real = figure["predicted"], figure["measured"]
        if predicted is None or not real:
            assert figure["error"] is None
        else:
            assert figure["error"] == pytest.approx((predicted - real) / real)


def test_the_speed_up_is_that_of_the_two_sides(measured: dict[str, Any]) -> None:
    body = measured["body"]
    ours, theirs = (body[s]["tokens_per_second"]["measured"] for s in ("layout", "baseline"))
    assert body["speed_up"]["measured"] == pytest.approx(ours / theirs)
    assert body["verdict"]["decision"] in ("shard so", "shard otherwise", "don't shard")
    assert f"Verdict: {body['verdict']['decision']}" in measured["stdout"]


def test_the_files_are_there(measured: dict[str, Any]) -> None:
    folder, body = measured["folder"], measured["body"]
    assert measured["report"] == {**body["layout"]["report"], "provenance": body["provenance"]}
    assert body["provenance"]["config"]["repeats"] == REPEATS
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert body["verdict"]["decision"].capitalize().replace("'", "&#39;") in page
    assert body["provenance"]["date"] in page and f"hydra {hydra.__version__}" in page
    assert (folder / "picture.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_the_run_s_folder_has_both_layouts_logs(measured: dict[str, Any]) -> None:
    run = measured["folder"] / "run"
    assert {str(p.relative_to(run)) for p in run.rglob("*.*")} == {
        *("config.yaml", "report.json", "result.json"),
        *("rank0.log", "rank1.log", "baseline/rank0.log"),
    }
    assert json.loads((run / "result.json").read_text()) == measured["body"]
    assert json.loads((run / "report.json").read_text()) == measured["report"]
    assert all("ended well" in log.read_text() for log in run.rglob("*.log"))


def test_the_contract_names_every_field(measured: dict[str, Any]) -> None:
    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    body = {**measured["body"], "provenance": None}
    assert not {k for k in keys(body) if f'"{k}"' not in CONTRACT and f"`{k}`" not in CONTRACT}


def test_under_torchrun_the_baseline_is_predicted(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run = f"run_folder={tmp_path / 'run'}"
    done = measure(model, "+pp=2", f"output={out}", run, torchrun=2)
    assert done.returncode == 0, done.stderr
    names = {"config.yaml", "report.json", "result.json", "rank0.log", "rank1.log"}
    assert {p.name for p in (tmp_path / "run").iterdir()} == names
    body = json.loads(out.read_text())
    assert body["layout"]["plan"]["pp"] == 2 and body["baseline"]["report"] is None
    assert "predicted alone" in body["baseline_reason"]
    assert body["speed_up"]["measured"] is None and body["speed_up"]["predicted"] > 0
    assert body["layout"]["phases"]["decode"]["step_ms"]["measured"] > 0


def test_without_a_baseline_nothing_is_compared(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    done = measure(model, "tp=1", "baseline=none", f"output={out}")
    assert done.returncode == 0, done.stderr
    body = json.loads(out.read_text())
    assert body["baseline"] is None and body["saved"] == [] and body["speed_up"] is None


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("repeats=0", "repeats=0 is out of range"),
        ("baseline=two", "baseline"),
        ("page=report.pdf", "page=report.pdf must end in .html"),
        ("picture=a.jpg", "picture=a.jpg must end in .png or .svg"),
        ("output=none/out.json", "its folder doesn't exist"),
        ("workload.input_tokens=400", "doesn't fit the context of 256 tokens"),
        ("engine.queue=1 engine.requests=1", "more than may run and wait in a replica at once, 2"),
        ("tp=99", "tp=99"),
        ("repeat=3", "did you mean 'repeats'"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(model: Path, argument: str, words: str) -> None:
    done = measure(model, *argument.split())
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "loading" not in done.stderr


def test_defaults() -> None:
    settings = MeasureCommand()
    assert settings.repeats == 3 and settings.baseline.value == "auto"
