"""What results came from, the folders of runs, and variables of the environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from datetime import datetime
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import parallel
from launch.provenance import plain_settings, provenance
from launch.rank_log import rank_log
from launch.run_folder import RunFolder, told_to_ranks
from launch.schema import MeasureCommand, PlanCommand, ServeCommand
from parallel.environment import KNOWN, check_environment
from parallel.errors import ConfigError, HardwareError
from parallel.hardware.calibrated import read_calibration
from parallel.hardware.catalogue import cluster_names, load_cluster, read_cluster
from parallel.hardware.known import known_devices
from parallel.report.checkout import read_commit
from parallel.report.provenance import cluster_facts, provenance_facts, without_secrets
from tests.checkpoints import make_checkpoint
from tests.commands import ROOT, command, environment, run
from tests.test_docs import all_keys

CONTRACT = (ROOT / "docs/contract.md").read_text()
CLUSTERS = ROOT / "configs/clusters"


# ------------------------------------------------------------------------- the environment


@pytest.mark.parametrize(
    ("name", "meant"),
    [("TESSERA_APIKEY", "TESSERA_API_KEY"), ("TESSERA_CACHES", "TESSERA_CACHE")],
)
def test_a_mistyped_variable_is_named_with_the_nearest(name: str, meant: str) -> None:
    done = subprocess.run(
        command("plan"), env=environment(**{name: "x"}), capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert f"unknown environment variable {name}; did you mean '{meant}'?" in done.stderr


def test_known_variables_and_those_of_kubernetes_pass() -> None:
    service = ("PORT", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT_8000_TCP_ADDR")
    names = [*KNOWN, *(f"TESSERA_{name}" for name in service), "TESSERA_A_1_PORT_80_UDP", "PATH"]
    check_environment(dict.fromkeys(names, "x"))
    for wrong in ("TESSERA_PORTS", "TESSERA_SERVICE", "TESSERA_PORT_NAME"):
        with pytest.raises(ConfigError, match=wrong):
            check_environment({wrong: ""})


def test_every_variable_that_is_read_is_known_and_documented() -> None:
    """Names are written out in one module alone."""
    pattern = re.compile(r"[\"'](TESSERA_[A-Z_]+)[\"']")
    found: dict[str, set[str]] = {}
    for folder in ("parallel", "launch"):
        for file in (ROOT / folder).rglob("*.py"):
            for name in pattern.findall(file.read_text()):
                found.setdefault(name, set()).add(file.name)
    assert found == {name: {"environment.py"} for name in KNOWN}
    assert all(f"`{name}`" in CONTRACT for name in KNOWN)


# ------------------------------------------------------------------------------ its parts


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git isn't installed")
def test_the_commit_is_what_git_says(tmp_path: Path) -> None:
    """On a branch, packed, detached, in a second work tree; with and without changes."""
    root = tmp_path / "checkout"
    root.mkdir()
    assert read_commit(root) is None
    git(root, "init", "--quiet")
    assert read_commit(root) is None, "a branch without a commit"
    (root / "file").write_text("one")
    git(root, "add", "file")
    git(root, "commit", "--quiet", "-m", "one")
    head = git(root, "rev-parse", "HEAD")
    git(root, "worktree", "add", "--quiet", "-b", "other", str(tmp_path / "second"))
    places = (root, tmp_path / "second")
    for arrange in (("status",), ("pack-refs", "--all"), ("checkout", "--quiet", "--detach")):
        git(root, *arrange)
        for place in places:
            found = read_commit(place)
            assert found is not None and found.to_json() == {"hash": head, "modified": False}
    (root / "file").write_text("two")
    (root / "untracked").write_text("")
    assert [c.modified for c in map(read_commit, places) if c] == [True, False]


@pytest.mark.parametrize("name", sorted(set(cluster_names(CLUSTERS)) - {"local"}))
def test_cluster_facts_read_back_as_the_same_cluster(name: str) -> None:
    cluster = load_cluster(name, CLUSTERS)
    facts = yaml.safe_load(yaml.safe_dump(cluster_facts(cluster)))
    json.dumps(facts)
    assert facts.pop("name") == name
    assert read_cluster(facts, f"{name}.yaml", known_devices(CLUSTERS / "devices")) == cluster


def test_the_calibration_is_that_of_the_ranks_that_were_planned(tmp_path: Path) -> None:
    file = tmp_path / "here.yaml"
    counts = {n: {"calibration": {"ranks": n, "spread": {"memory": n / 10}}} for n in (1, 4)}
    common = {"date": "2026-01-02T03:04:05+00:00", "host": "h"}
    file.write_text(yaml.safe_dump({"calibration": common, "by_ranks": counts}))
    for asked, taken in ((1, 1), (2, 4), (4, 4)):
        found = read_calibration(file, asked)
        assert found is not None and (found.ranks, found.spread) == (taken, {"memory": taken / 10})
        assert (found.date, found.host) == (common["date"], "h")
    assert read_calibration(CLUSTERS / "8xh100.yaml", 8) is None


@pytest.mark.parametrize("notes", [{"spread": 0.1}, {"errors": {"memory": "much"}}])
def test_a_calibration_that_says_no_numbers_is_refused(
    tmp_path: Path, notes: dict[str, Any]
) -> None:
    file = tmp_path / "here.yaml"
    file.write_text(yaml.safe_dump({"calibration": {"host": "h"}, "by_ranks": {1: {}}}))
    assert read_calibration(file, 1) is not None
    by_ranks = {1: {"calibration": notes}}
    file.write_text(yaml.safe_dump({"calibration": {"host": "h"}, "by_ranks": by_ranks}))
    with pytest.raises(HardwareError, match=r"by_ranks\.1\.(spread|errors\.memory): expected a"):
        read_calibration(file, 1)


SECRETS = ("api_key", "password", "hub.token", "secrets")
names = st.sampled_from(("step_tokens", "api_key_file", "keys_per_head", "passwords_x", *SECRETS))
trees = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(st.dictionaries(names, trees, max_size=3))
def test_secrets_are_hidden_at_any_depth_and_nothing_else(tree: dict[str, Any]) -> None:
    def check(before: Any, after: Any) -> None:
        if not isinstance(before, dict):
            assert after == before
            return
        assert list(after) == list(before)
        for key, value in before.items():
            hidden = key in SECRETS and not isinstance(value, dict | None)
            check("***" if hidden else value, after[key])

    check(tree, without_secrets(tree))


def test_no_key_of_ours_is_hidden_but_the_file_may_be_named() -> None:
    """`engine.step_tokens` and the like aren't secrets."""
    plain = plain_settings(ServeCommand(api_key_file="/run/key"))
    assert plain["api_key_file"] == "/run/key" and plain["engine"]["step_tokens"] == 512
    assert plain["device"] == "auto" and "***" not in json.dumps(plain)
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain


def test_the_contract_names_its_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["launch/plan.py", "tp=2", "my.password=hush"])
    file = tmp_path / "c.yaml"
    document = yaml.safe_load((CLUSTERS / "8xh100.yaml").read_text())
    file.write_text(yaml.safe_dump({"calibration": {"spread": {"memory": 0.25}}, **document}))
    cluster = load_cluster(file, CLUSTERS)
    body = provenance(PlanCommand(cluster=str(file), tp=2), cluster).to_json()
    assert body["command"] == ["launch/plan.py", "tp=2", "my.password=***"]
    assert body["versions"]["tessera"] == parallel.__version__ and "torch" in body["versions"]
    assert body["config"]["tp"] == 2 and body["calibration"]["file"] == str(file)
    named = {k for k in all_keys({**body, "config": None, "cluster": None})}
    assert not [k for k in named if f'"{k}"' not in CONTRACT]
    facts = dict(provenance_facts({"provenance": body}))
    assert "repeats within 25%" in facts["calibration"] and "hush" not in str(facts)


def test_a_plan_says_it_and_writes_nothing(tmp_path: Path) -> None:
    done = run("plan", "cluster=8xh100", "tp=2", "output=json", cwd=tmp_path)
    found = json.loads(done.stdout)["provenance"]
    assert found["config"]["cluster"] == "8xh100" == found["cluster"]["name"]
    assert found["calibration"] is None and not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------- the folder


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RANK", "WORLD_SIZE", "TESSERA_RUN_FOLDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TESSERA_OUTPUTS", str(tmp_path / "o"))
    return tmp_path / "o"


def test_runs_of_the_same_second_have_their_own_folders(outputs: Path) -> None:
    made = [RunFolder(MeasureCommand(tp=2)).path() for _ in range(3)]
    assert len(set(made)) == 3
    for path in made:
        assert path is not None and path.parent.parent == outputs
        assert yaml.safe_load((path / "config.yaml").read_text())["tp"] == 2


def test_where_the_folder_is_may_be_said(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert RunFolder(MeasureCommand(run_folder=None)).path() is None
    named = tmp_path / "a" / "b"
    assert RunFolder(MeasureCommand(run_folder=str(named))).path() == named
    assert (named / "config.yaml").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run_folder=.*give a folder that can be written"):
        RunFolder(MeasureCommand(run_folder=str(tmp_path / "file" / "x"))).path()
    monkeypatch.setenv("TESSERA_OUTPUTS", "")
    assert RunFolder(MeasureCommand()).path() is None and not outputs.exists()


def test_a_folder_that_nobody_named_may_be_missing(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs.write_text("a file in its place")
    assert RunFolder(MeasureCommand()).path() is None
    assert "no folder for this run" in capsys.readouterr().err


def test_ranks_take_the_folder_that_they_are_told(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for path in (tmp_path, None):
        with told_to_ranks(path):
            folder = RunFolder(MeasureCommand())
            assert folder.decided_here and folder.path() == path
    assert "TESSERA_RUN_FOLDER" not in os.environ and not RunFolder(MeasureCommand()).decided_here


def test_a_log_has_what_was_printed_before_it_had_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = StringIO()
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(sys, "stdout", terminal)
    with rank_log() as log:
        print("before")
        log.open(tmp_path / "new")
        print("after")
        print("\rprogress", end="")
        assert not sys.stdout.isatty()
    print("not a rank's")
    first, *lines, last = (tmp_path / "new/rank3.log").read_text().splitlines()
    assert "rank 3 of" in first and lines == ["before", "after"] and last.endswith("ended well")
    assert terminal.getvalue() == "before\nafter\n\rprogressnot a rank's\n"


def test_a_log_of_a_rank_that_ends_at_once_has_its_last_words(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from launch.rank_log import rank_log\n"
        "with rank_log() as log:\n"
        "    log.open(Path(sys.argv[1]))\n"
        "    print('last words', file=sys.stderr)\n"
        "    os._exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env=environment())
    text = (tmp_path / "rank0.log").read_text()
    assert done.returncode == 7 and text.endswith("last words\n") and "ended well" not in text


@pytest.mark.parametrize("told_later", [False, True])
def test_a_log_has_what_native_code_and_children_say(tmp_path: Path, told_later: bool) -> None:
    """Before the rank knows its folder too, and what came just before an abort; each line once.
    Where no program is on the PATH, and signals come to all of a job's processes."""
    begin = "log.keep()" if told_later else "log.open(folder)"
    code = (
        "import ctypes, os, psutil, signal, sys; from pathlib import Path\n"
        "from launch.rank_log import rank_log\n"
        "folder = Path(sys.argv[1])\n"
        "def signalled():\n"
        "    (copying,) = psutil.Process().children()\n"
        "    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
        "        copying.send_signal(number)\n"
        "with rank_log() as log:\n"
        f"    {begin}\n"
        "    signalled()\n"
        "    print('python')\n"
        "    ctypes.CDLL(None).puts(b'from C')\n"
        "    os.system('echo child')\n"
        "    log.open(folder)\n"
        "    signalled()\n"
        "    os.write(2, b'last words\\n')\n"
        "    os.abort()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env={**environment(), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    first, *lines = (tmp_path / "rank0.log").read_text().splitlines()
    said = {"python", "from C", "child", "last words"}
    assert done.returncode == -signal.SIGABRT and "start 1 of this run" in first
    assert set(lines) == said and len(lines) == len(said)
    assert set(done.stdout.splitlines()) == said - {"last words"}
    assert done.stderr == "last words\n"


@pytest.mark.parametrize("lacking", ["processes", "scratch"])
def test_a_log_without_native_code_says_so_once(
    tmp_path: Path,
    lacking: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """And has what Python says, in its order."""
    if lacking == "processes":
        monkeypatch.setattr(sys, "executable", str(tmp_path / "nowhere"))
    else:

        def nowhere(*_: object, **__: object) -> None:
            raise FileNotFoundError("no folder for scratch")

        monkeypatch.setattr("launch.rank_log.TemporaryFile", nowhere)
    with rank_log() as log:
        print("before")
        log.keep()
        print("kept")
        log.open(tmp_path)
        print("after")
    out, err = capfd.readouterr()
    _, *lines, _ = (tmp_path / "rank0.log").read_text().splitlines()
    assert "lack what native code" in err and err.count("\n") == 1
    assert lines == ["before", err.rstrip(), "kept", "after"]
    assert out == "before\nkept\nafter\n"


@pytest.mark.parametrize("broken", ["file", "terminal"])
def test_a_full_disk_or_a_gone_terminal_leaves_the_other(tmp_path: Path, broken: str) -> None:
    """And whoever writes isn't held up, however much it is."""
    text = b"line\n" * 40_000
    log, shown = tmp_path / "log", tmp_path / "shown"
    file = os.open("/dev/full" if broken == "file" else log, os.O_WRONLY | os.O_CREAT)
    terminal = os.open("/dev/full" if broken == "terminal" else shown, os.O_WRONLY | os.O_CREAT)
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    tee = [sys.executable, str(ROOT / "launch/tee.py"), str(file), str(out), str(err)]
    with subprocess.Popen(
        tee, stdout=terminal, stderr=terminal, pass_fds=(file, out, err)
    ) as process:
        for descriptor in (out, err, err_end, file, terminal):
            os.close(descriptor)
        with open(out_end, "wb") as pipe:
            pipe.write(text)
    assert process.returncode == 0
    assert (shown if broken == "file" else log).read_bytes() == text


def test_starts_of_a_run_have_one_folder(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch elastic tells them of each other; another run of the same command has another."""

    def begin(run: str, attempt: int) -> Path | None:
        own = tmp_path / run / f"attempt_{attempt}" / "0"
        own.mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(own / "error.json"))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        return RunFolder(ServeCommand()).path()

    places = [begin("one", 0), begin("two", 0), begin("one", 1), begin("one", 2)]
    assert places[0] == places[2] == places[3] != places[1]
    assert len(list(outputs.glob("*/*"))) == 2
    with rank_log() as log:
        log.open(places[0])
    assert "start 3 of this run" in (outputs / str(places[0]) / "rank0.log").read_text()


def test_a_job_that_slurm_queues_again_goes_on_in_its_folder(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the job's script is a user's own and `run_folder` isn't given; another run of the same
    job, or of another, has its own."""
    monkeypatch.setattr("launch.run_folder.datetime", SimpleNamespace(now=lambda: now))

    def begin(job: str, again: int, port: int) -> Path | None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(again))
        return RunFolder(ServeCommand(port=port)).path()

    now = datetime(2026, 1, 2, 23, 59, 59)
    first, other, elsewhere = begin("17", 0, 81), begin("17", 0, 82), begin("18", 0, 81)
    now = datetime(2026, 1, 3)
    assert begin("17", 1, 81) == begin("17", 2, 81) == first
    assert begin("17", 1, 82) == other and begin("18", 1, 81) == elsewhere
    anew = [begin("17", 1, 83), begin("19", 1, 81), begin("17", 0, 81)]
    assert len({first, other, elsewhere, *anew}) == 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3", tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("torchrun", [None, 2])
def test_a_run_has_one_folder_for_all_its_ranks(
    model: Path, tmp_path: Path, torchrun: int | None
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt_token_ids": [1, 2, 3], "max_tokens": 2}\n')
    done = subprocess.run(
        command(
            "generate",
            *(f"model={model}", "tp=2", "memory_gib=1", "threads=1", "engine.step_tokens=32"),
            *("input=in.jsonl", "output=out.jsonl", "report=r.json"),
            torchrun=torchrun,
        ),
        env=environment(TESSERA_OUTPUTS="runs"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert folder.name.endswith("-generate")
    names = {"config.yaml", "report.json", "rank0.log", "rank1.log"}
    assert {p.name for p in folder.iterdir()} == names
    logs = [(folder / f"rank{rank}.log").read_text() for rank in (0, 1)]
    assert all("loaded and warm on cpu" in log and "ended well" in log for log in logs)
    for line in done.stdout.splitlines():
        assert line in logs[0]
    report = json.loads((folder / "report.json").read_text())
    assert report == json.loads((tmp_path / "r.json").read_text())
    assert report["provenance"]["config"] == yaml.safe_load((folder / "config.yaml").read_text())
    assert {p.name for p in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl", "r.json", "runs"}
