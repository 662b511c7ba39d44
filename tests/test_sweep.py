"""Sweeps: a folder per point, what is measured again, and the comparison in the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.sweep import point_name, read_points, run_point, sweep_code, with_folder
from parallel.report.comparison import compare_results
from parallel.report.comparison_tables import comparison_tables
from parallel.report.page import write_comparison_page
from parallel.report.render import make_console
from tests.checkpoints import make_checkpoint
from tests.commands import run
from tests.measured import made_trade_off


def point(name: str, result: dict[str, Any] | None, state: str = "measured") -> dict[str, Any]:
    reason = "" if result is not None else f"{name} is not legal"
    overrides = ["model=DIR", *name.split()]
    return {"overrides": overrides, "state": state, "reason": reason, "result": result}


@given(st.permutations(["tp=2", "pp=1", "model=/a/b c", "precision.weights=bf16"]))
def test_a_point_is_named_by_its_overrides_in_any_order(overrides: list[str]) -> None:
    name = point_name(overrides)
    assert name == point_name(["tp=2", "pp=1", "model=/a/b c", "precision.weights=bf16"])
    assert name.startswith("pp=1,tp=2,") and "/" not in name and " " not in name
    assert name != point_name([*overrides[:-1], "engine.requests=3"])


def test_a_sweep_has_a_folder_given_or_of_its_own(tmp_path: Path) -> None:
    arguments, folder = with_folder(["-m", "tp=1,2", f"hydra.sweep.dir={tmp_path}"], "measure")
    assert folder == tmp_path
    assert [a for a in arguments if "hydra.sweep.dir" in a] == [f"hydra.sweep.dir='{tmp_path}'"]
    _, own = with_folder(["-m", "tp=1,2"], "measure")
    assert own.name.endswith("-measure-sweep") and own.parent.parent.name == "outputs"


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["measured", "refused"], 0),
        (["measured", "failed"], 1),
        (["refused", "refused"], 2),
        ([], 1),
    ],
)
def test_exit_codes_of_a_sweep(states: list[str], code: int) -> None:
    assert sweep_code([{"state": state} for state in states]) == code


def test_a_point_that_never_ends_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as files can tell, a point that is killed; one that ends later puts it right."""
    overrides = SimpleNamespace(task=["tp=2"])
    monkeypatch.setattr(sys, "argv", ["measure.py"])
    monkeypatch.setattr(
        "launch.sweep.HydraConfig",
        SimpleNamespace(get=lambda: SimpleNamespace(overrides=overrides)),
    )

    def killed() -> int:
        raise KeyboardInterrupt

    folder = tmp_path / point_name(["tp=2"])
    with pytest.raises(KeyboardInterrupt):
        run_point(folder, killed)
    (point,) = read_points(tmp_path)
    assert point["overrides"] == ["tp=2"] and point["state"] == "failed"
    assert "never ended" in point["reason"] and sweep_code([point]) == 1
    run_point(folder, lambda: 0)
    (point,) = read_points(tmp_path)
    assert (point["state"], point["reason"]) == ("measured", "")


def test_points_are_compared(tmp_path: Path) -> None:
    found = compare_results(
        [
            point("tp=2", made_trade_off(tp=2).to_json()),
            point("tp=1", made_trade_off(tp=1).to_json()),
            point("tp=11", None, "refused"),
        ]
    )
    names = {entry.name: entry for entry in found.entries}
    assert set(names) == {"tp=1", "tp=2"}
    two = names["tp=2"]
    assert two.device_rate == pytest.approx(two.tokens_per_second / 2)
    assert two.user_rate == pytest.approx(1e3 / two.tpot_ms)
    assert two.saved_bytes > 0 == names["tp=1"].saved_bytes
    assert [(left.name, left.state) for left in found.left] == [("tp=11", "refused")]
    rates = [entry.tokens_per_second for entry in found.entries]
    assert rates == sorted(rates, reverse=True)
    # Both users get as much; a device of the single rank gives more.
    assert names["tp=1"].user_rate == two.user_rate
    assert names["tp=1"].device_rate > two.device_rate
    assert names["tp=1"].pareto and not two.pareto
    page = tmp_path / "comparison.html"
    write_comparison_page(found, page)
    text = page.read_text()
    assert (
        "tp=11 is not legal" in text
        and "<svg" in text
        and "http://" not in text.replace("http://www.w3.org", "")
    )


def test_a_comparison_of_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    found = compare_results([point("tp=11", None, "refused"), point("tp=12", None, "failed")])
    comparison_tables(found, make_console())
    out = capsys.readouterr().out
    assert "tp=11: refused: tp=11 is not legal" in out and "tp=12: failed" in out
    assert not found.entries


def test_a_sweep_from_the_shell_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model = make_checkpoint("qwen3", tmp_path / "models")
    folder = tmp_path / "sweep"
    arguments = [
        "-m",
        f"model={model}",
        "memory_gib=1",
        "threads=1",
        "engine.step_tokens=32",
        "engine.requests=2",
        "workload.input_tokens=8",
        "workload.output_tokens=4",
        "workload.concurrency=1",
        "repeats=1",
        "baseline=none",
        "tp=1,99",
        f"hydra.sweep.dir={folder}",
    ]
    done = run("measure", *arguments)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {line["state"] for line in lines} == {"measured", "refused"}
    (refused,) = (line for line in lines if line["state"] == "refused")
    assert "tp=99" in refused["overrides"] and "query heads" in refused["reason"]
    (measured,) = (line for line in lines if line["state"] == "measured")
    assert measured["result"]["layout"]["plan"]["tp"] == 1
    assert "99" in done.stdout and (folder / "comparison.html").exists()

    again = run("measure", *arguments)
    assert again.returncode == 0, again.stderr
    assert "measured before" in again.stdout
    kept = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert measured in kept
