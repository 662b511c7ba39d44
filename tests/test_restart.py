"""A server whose rank was killed comes back by itself, on its port."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from launch.schema import ServeCommand
from launch.serve import main as serve
from parallel.errors import ConfigError
from parallel.server.generations import Ended, Generation, recovery
from tests.checkpoints import make_checkpoint
from tests.small_tokenizers import byte_level, save
from tests.test_serve_command import Server, alive, environment_of, running

SMALL = ("engine.requests=2", "engine.step_tokens=64", "memory_gib=1", "collectives=gloo")


def test_what_a_generation_knows_of_the_one_before(tmp_path: Path) -> None:
    def of(attempt: int, **more: str) -> Generation:
        folder = tmp_path / f"attempt_{attempt}"
        (folder / "0").mkdir(parents=True, exist_ok=True)
        error_file = str(folder / "0" / "error.json")
        variables = {"TORCHELASTIC_RESTART_COUNT": str(attempt), **more}
        return Generation.of({"TORCHELASTIC_ERROR_FILE": error_file, **variables})

    first = of(0)
    assert (first.restarts, first.before, first.port(0), first.port(81)) == (0, None, 0, 81)
    first.ended(8123)
    second = of(1, SLURM_RESTART_COUNT="2")
    assert second.restarts == 3 and isinstance(second.before, Ended)
    assert (second.port(0), second.port(81)) == (8123, 81)
    at = second.before.at_unix_seconds
    assert recovery(second, at + 3, at + 8) == {
        "restarts": 3,
        "seconds": pytest.approx(8),
        "loading_seconds": pytest.approx(5),
    }
    # The one before left no word: how long the server was away isn't known.
    third = of(2)
    assert third.before is None and recovery(third, 1.0, 2.0)["seconds"] is None
    # A batch script says when, and a port of another host means nothing.
    requeued = Generation.of({"SLURM_RESTART_COUNT": "1", "TESSERA_ENDED": "1700000000.5"})
    assert requeued.before == Ended(1700000000.5, None) and requeued.port(0) == 0
    assert recovery(requeued, 1700000002.0, 1700000003.5)["seconds"] == 3.0
    for variables in ({"TESSERA_ENDED": "1.5"}, {"SLURM_RESTART_COUNT": "1", "TESSERA_ENDED": ""}):
        assert Generation.of(variables).before is None
    alone = Generation.of({"SLURM_RESTART_COUNT": "1"})
    alone.ended(8123)
    assert alone == Generation(1, None, None)


def test_restarts_that_torchrun_would_not_make_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_MAX_RESTARTS": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="1 times; give it --max-restarts 2 in place of the key"):
        serve(ServeCommand(restarts=2))
    for said in (0, 1):
        with pytest.raises(ConfigError, match="nowhere"):
            serve(ServeCommand(restarts=said, api_key_file="nowhere"))


@pytest.mark.parametrize(("rank", "torchrun"), [(0, True), (1, False)])
def test_a_server_comes_back_and_requests_under_way_get_an_error(
    tmp_path: Path, rank: int, torchrun: bool, request: pytest.FixtureRequest
) -> None:
    model = make_checkpoint("qwen3", tmp_path)
    save(byte_level(), model)
    file = tmp_path / "report.json"
    allowed = {"PET_MAX_RESTARTS": "1"} if torchrun else {}  # as torchrun's option has it
    key = () if torchrun else ("restarts=1",)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    started = Server(
        *(f"model={model}", "tp=2", *SMALL, *key, f"report={file}", "threads=1"),
        torchrun=2 if torchrun else None,
        **allowed,
        TMPDIR=str(temporary),
        TESSERA_OUTPUTS=str(tmp_path / "runs"),
    )
    request.addfinalizer(started.end)
    family = started.family()
    ranks = [p for p in family if "RANK" in environment_of(p) and is_rank(p)]
    victim = next(p for p in ranks if environment_of(p)["RANK"] == str(rank))
    body = {"model": model.name, "prompt": [5, 6, 7], "max_tokens": 200, "stream": True}
    lines: list[str] = []
    with httpx.stream(
        "POST", f"{started.address}/v1/completions", json={**body, "ignore_eos": True}, timeout=60
    ) as stream:
        for line in stream.iter_lines():
            if not lines:
                os.kill(victim, signal.SIGKILL)
            lines.append(line)
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    error = json.loads(events[-2])["error"]
    assert error["type"] == "service_unavailable" and error["code"] == "engine_error"
    refused = wait_ready(started.address)
    assert refused <= {"refused", "503"}
    answer = httpx.post(
        f"{started.address}/v1/completions", json={**body, "max_tokens": 4, "stream": False}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 4
    restart = httpx.get(f"{started.address}/v1/parallel/report", timeout=60).json()["restart"]
    assert restart["restarts"] == 1 and restart["seconds"] > restart["loading_seconds"] > 0
    assert not running(victim)
    last = started.family()
    started.process.terminate()
    assert torchrun or started.process.wait(60) == 0, started.errors
    started.wait()
    # torchrun leaves a folder of its own; the own launcher takes it away.
    assert torchrun or list(temporary.glob("torchelastic_*")) == []
    assert torchrun or list(temporary.glob("tessera-ranks-*")) == []
    assert alive(sorted({*family, *last})) == []
    assert json.loads(file.read_text())["restart"] == restart
    (folder,) = (tmp_path / "runs").glob("*/*")
    for log in ((folder / f"rank{number}.log").read_text() for number in range(2)):
        assert [log.count(f"start {n} of this run") for n in (1, 2, 3)] == [1, 1, 0]
    assert sum(line.startswith("back ") for line in started.printed) == 1


def is_rank(pid: int) -> bool:
    return b"launch/serve.py" in Path(f"/proc/{pid}/cmdline").read_bytes()


def wait_ready(address: str) -> set[str]:
    """How requests were refused until it was ready; each 503 says when to come again."""
    seen = set()
    end = time.monotonic() + 120
    while True:
        assert time.monotonic() < end, "the server didn't come back"
        try:
            answer = httpx.get(f"{address}/ready")
        except httpx.TransportError:
            seen.add("refused")
        else:
            if answer.status_code == 200:
                return seen
            assert answer.headers["Retry-After"]
            seen.add(str(answer.status_code))
        time.sleep(0.05)
