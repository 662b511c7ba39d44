"""Sweeps: a folder per point, what is measured again, and the comparison in the end."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.sweep import (
    WAITING,
    current_points,
    expect_points,
    point_name,
    read_points,
    sweep_code,
    write_point,
)
from launch.sweep_arguments import is_sweep, sweep_arguments
from launch.sweep_callback import grid
from launch.sweep_point import run_point
from parallel.errors import ConfigError
from parallel.report.comparison import compare_results
from parallel.report.comparison_tables import comparison_tables
from parallel.report.page import write_comparison_page
from parallel.report.render import make_console
from parallel.report.sweep_table import point_line, point_rows, sweep_table
from tests.checkpoints import make_checkpoint
from tests.commands import ROOT, command, environment, run
from tests.measured import made_trade_off

SMALL = (
    "memory_gib=1",
    "threads=1",
    "engine.step_tokens=32",
    "engine.requests=2",
    "workload.input_tokens=8",
    "workload.output_tokens=4",
    "workload.concurrency=1",
    "repeats=1",
    "baseline=none",
)


def point(name: str, result: dict[str, Any] | None, state: str = "measured") -> dict[str, Any]:
    reason = "" if result is not None else f"{name} is not legal"
    overrides = ["model=DIR", *name.split()]
    return {"overrides": overrides, "state": state, "reason": reason, "result": result}


def told(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """As Hydra tells a point what it is."""
    config = SimpleNamespace(overrides=SimpleNamespace(task=list(overrides)))
    monkeypatch.setattr(sys, "argv", ["measure.py"])
    monkeypatch.setattr("launch.sweep_point.HydraConfig", SimpleNamespace(get=lambda: config))


@given(st.permutations(["tp=2", "pp=1", "model=/a/b c", "precision.weights=bf16"]))
def test_a_point_is_named_by_its_overrides_in_any_order(overrides: list[str]) -> None:
    name = point_name(overrides)
    assert name == point_name(["tp=2", "pp=1", "model=/a/b c", "precision.weights=bf16"])
    assert name.startswith("pp=1,tp=2,") and "/" not in name and " " not in name
    assert name != point_name([*overrides[:-1], "engine.requests=3"])


def test_a_sweep_has_a_folder_given_or_of_its_own(tmp_path: Path) -> None:
    arguments, folder = sweep_arguments(["-m", "tp=1,2", f"hydra.sweep.dir={tmp_path}"], "measure")
    assert folder == tmp_path
    assert [a for a in arguments if "hydra.sweep.dir" in a] == [f"hydra.sweep.dir='{tmp_path}'"]
    _, own = sweep_arguments(["-m", "tp=1,2"], "measure")
    assert own.name.endswith("-measure-sweep") and own.parent.parent.name == "outputs"


def test_points_run_one_at_a_time_on_this_machine_unless_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("launch.sweep_arguments._is_installed", lambda module: True)

    def added(*given: str) -> set[str]:
        arguments, _ = sweep_arguments(["-m", *given], "measure")
        return {a for a in arguments if "n_jobs" in a or "max_batch_size" in a}

    assert added("hydra/launcher=joblib") == {"hydra.launcher.n_jobs=1"}
    assert added("hydra/launcher=joblib", "hydra.launcher.n_jobs=4") == {"hydra.launcher.n_jobs=4"}
    assert added("hydra/launcher=submitit_local") == {"hydra.sweeper.max_batch_size=1"}
    assert added("hydra/launcher=submitit_slurm") == added() == set()


def test_a_launcher_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.sweep_arguments._is_installed", lambda module: False)
    with pytest.raises(ConfigError, match=r"joblib isn't installed; .*tessera\[sweeps\]"):
        sweep_arguments(["-m", "hydra/launcher=joblib"], "measure")


@pytest.mark.parametrize(
    ("launcher", "wrong", "near"),
    [
        ("joblib", "hydra.launcher.n_job", "hydra.launcher.n_jobs"),
        ("submitit_local", "hydra.launcher.timeout_mins", "hydra.launcher.timeout_min"),
        ("submitit_slurm", "+hydra.launcher.partitoin", "hydra.launcher.partition"),
        ("joblib", "hydra.sweeper.max_batchsize", "hydra.sweeper.max_batch_size"),
    ],
)
def test_a_mistyped_key_of_a_launcher_names_the_nearest(
    launcher: str, wrong: str, near: str
) -> None:
    chosen = f"hydra/launcher={launcher}"
    with pytest.raises(ConfigError, match=f"unknown key .*did you mean '{near}'"):
        sweep_arguments(["-m", chosen, f"{wrong}=1"], "measure")
    right = [f"{near}=1", "+hydra.launcher.additional_parameters.exclusive=true"]
    sweep_arguments(["-m", chosen, *right[: 2 if "slurm" in launcher else 1]], "measure")


def test_a_sweep_is_told_by_its_flags() -> None:
    assert is_sweep(["-m"]) and is_sweep(["tp=1", "--multirun"])
    assert is_sweep(["hydra.mode=MULTIRUN"]) and not is_sweep(["tp=1,2"])


def test_the_grid_is_known_before_it_runs(tmp_path: Path) -> None:
    points = grid(["++tp=1,2", "model=/a", "hydra.launcher.n_jobs=1", "pp=range(1,3)"])
    assert [point_name(p) for p in points] == [
        point_name([f"tp={tp}", "model=/a", f"pp={pp}"]) for tp in (1, 2) for pp in (1, 2)
    ]
    expect_points(tmp_path, points)
    assert [p["state"] for _, p in current_points(tmp_path)] == [WAITING] * 4


def test_a_point_that_was_never_started_has_failed(tmp_path: Path) -> None:
    measured = tmp_path / point_name(["tp=1"])
    write_point(measured, ["tp=1"], "measured")
    (measured / "result.json").write_text("{}")
    expect_points(tmp_path, [["tp=1"], ["tp=2"]])
    points = {p["overrides"][0]: p for p in read_points(tmp_path)}
    assert points["tp=1"]["state"] == "measured"
    assert points["tp=2"]["state"] == "failed" and "never started" in points["tp=2"]["reason"]
    assert sweep_code(list(points.values())) == 1
    # Another sweep in the same folder doesn't wait for it any more.
    expect_points(tmp_path, [["tp=3"]])
    assert {p["overrides"][0] for p in read_points(tmp_path)} == {"tp=1", "tp=3"}


def test_a_point_is_no_rank_and_may_be_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told(monkeypatch, "tp=2")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")

    def ranks() -> int:
        assert "RANK" not in os.environ and "WORLD_SIZE" not in os.environ
        subprocess.run(["echo", "from a child"], check=True)
        return 1

    run_point(tmp_path / "point", ranks, quiet=True)
    print("heard again")
    assert capfd.readouterr().out == "heard again\n"
    assert (tmp_path / "point/output.log").read_text() == "from a child\n"
    (point,) = read_points(tmp_path)
    assert point["state"] == "failed" and "output.log says why" in point["reason"]


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
    told(monkeypatch, "tp=2")

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


def test_points_without_a_baseline_save_against_the_sweeps_fewest_ranks() -> None:
    results = {f"tp={tp}": {**made_trade_off(tp=tp).to_json(), "saved": []} for tp in (1, 2)}
    found = compare_results([point(name, result) for name, result in results.items()])
    entries = {entry.name: entry for entry in found.entries}
    one, two = entries["tp=1"], entries["tp=2"]
    assert one.saved_bytes == 0
    assert two.saved_bytes == one.rank_bytes - two.rank_bytes > 0


def test_a_comparison_of_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    found = compare_results([point("tp=11", None, "refused"), point("tp=12", None, "failed")])
    comparison_tables(found, make_console())
    out = capsys.readouterr().out
    assert "tp=11: refused: tp=11 is not legal" in out and "tp=12: failed" in out
    assert not found.entries


def small_sweep(tmp_path: Path, *arguments: str) -> tuple[list[str], Path]:
    folder = tmp_path / "sweep"
    model = make_checkpoint("qwen3", tmp_path / "models")
    return ["-m", f"model={model}", *SMALL, *arguments, f"hydra.sweep.dir={folder}"], folder


def test_a_sweep_from_the_shell_goes_on_where_it_stopped(tmp_path: Path) -> None:
    arguments, folder = small_sweep(tmp_path, "tp=1,99")
    done = run("measure", *arguments)
    assert done.returncode == 0, done.stderr
    assert "tp=1: measured in " in done.stderr and "tp=99: refused: tp=99 " in done.stderr
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {line["state"] for line in lines} == {"measured", "refused"}
    (refused,) = (line for line in lines if line["state"] == "refused")
    assert "tp=99" in refused["overrides"] and "query heads" in refused["reason"]
    (measured,) = (line for line in lines if line["state"] == "measured")
    assert measured["result"]["layout"]["plan"]["tp"] == 1
    assert "99" in done.stdout and (folder / "comparison.html").exists()

    code, shown = on_terminal(command("measure", *arguments))
    assert code == 0, shown
    rate = f"{measured['result']['layout']['tokens_per_second']['measured']:.1f}"
    live, compared = shown.split("as measured", 1)
    assert "2 points: 1 measured, 1 refused" in live and "first token" in live
    (row,) = {line.strip() for line in live.splitlines() if line.strip().startswith("tp=1 ")}
    assert row.split()[1] == "measured" and rate in row
    assert rate in compared
    # What the point printed before isn't said again, and the terminal has the table alone.
    assert "measured before" not in shown
    kept = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert measured in kept


def on_terminal(arguments: list[str]) -> tuple[int, str]:
    """Exit code of a command on a terminal of its own, and what that showed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        arguments,
        env=environment(TERM="xterm", COLUMNS="120", LINES="40"),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            # How Linux says that no one holds the terminal any more.
            break
        if not part:
            break
        shown += part
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode(errors="replace"))
    return process.wait(60), text.replace("\r", "\n")


def test_points_run_in_processes_of_another_launcher(tmp_path: Path) -> None:
    """From another folder, so that a point's process finds nothing by chance; with a rank's
    variable inherited, which is half of what makes a rank."""
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    arguments, folder = small_sweep(tmp_path, "tp=1,99", *launcher)
    done = subprocess.run(
        command("measure", *arguments),
        env=environment(LOCAL_RANK="3", WORLD_SIZE="4"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {p["overrides"][-1]: p["state"] for p in read_points(folder)} == {
        "tp=1": "measured",
        "tp=99": "refused",
    }
    assert "tp=1: measured in " in done.stderr and (folder / "comparison.html").exists()


def test_a_sweep_under_torchrun_is_refused_with_its_command() -> None:
    done = run("measure", "-m", "tp=1,2", "model=/a b", torchrun=2)
    assert done.returncode != 0
    assert "`python launch/measure.py -m tp=1,2 'model=/a b'`" in done.stderr
    assert done.stderr.count("can't run under torchrun") == 1


def test_a_table_shows_first_what_matters() -> None:
    points = [
        {"overrides": [f"tp={n}"], "state": state, "reason": "", "seconds": 3.0, "result": {}}
        for n, state in enumerate(["waiting"] * 20 + ["running"] + ["waiting"] * 20)
    ]
    console = make_console(StringIO())
    rows = point_rows(points)
    console.print(sweep_table(rows, height=10))
    assert isinstance(console.file, StringIO)
    text = console.file.getvalue()
    assert "41 points: 1 running, 40 waiting; 35 of them not shown" in text
    assert "tp=20" in text and "tp=40" not in text
    assert point_line(rows[20]) == "tp=20: running"
    measured = {**points[0], "state": "measured", "result": made_trade_off(tp=2).to_json()}
    (row,) = point_rows([measured])
    assert row.entry is not None
    assert point_line(row).startswith("tp=0: measured in 3 s: ")
    assert f"{row.entry.tokens_per_second:.1f} tokens/s" in point_line(row)
