"""`launch/calibrate.py` from the shell: its file, who reads it, its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from parallel.hardware.catalogue import load_cluster
from tests.commands import ROOT, run

CLUSTERS = ROOT / "configs/clusters"
PARTS = ("steps", "memory", "products", "logits", "layers", "collectives")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This machine, one rank after two, measured in as little time as can be."""
    path = tmp_path_factory.mktemp("calibrated") / "here.yaml"
    quick = ("budget_seconds=0.1", "device=cpu", "threads=1")
    folder = path.parent / "run"
    done = run("calibrate", f"output={path}", "ranks=[2,1]", f"run_folder={folder}", *quick)
    assert done.returncode == 0, done.stderr
    logs = {"ranks=1/rank0.log", "ranks=2/rank0.log", "ranks=2/rank1.log"}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.*")} == {"config.yaml", *logs}
    for part in PARTS:
        assert f"calibrating 2 ranks: {part}" in done.stderr
    assert f"cluster={path}" in done.stdout
    return path


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_file_is_a_cluster_for_each_number_of_ranks(file: Path, ranks: int) -> None:
    cluster = load_cluster(file, CLUSTERS, ranks)
    assert cluster.device_count == ranks
    for device in cluster.devices:
        kind = device.type
        assert kind.kind == "cpu" and not kind.estimated
        assert kind.overheads is not None and kind.overheads.layer_seconds > 0
        assert kind.overheads.step_seconds > 0 and kind.overheads.logit_seconds > 0
        assert kind.overheads.host_bytes_per_second is not None
        assert kind.runtime_bytes > 0
        small, large = (kind.product_seconds(n, 1024, 1024, "bf16", "bf16") for n in (1, 512))
        assert 0 < small < large
    if ranks == 2:
        few, many = (
            cluster.collective_seconds(operation, size, (0, 1))
            for operation, size in (("send", 1 << 10), ("all_reduce", 1 << 24))
        )
        assert 0 < few < many
        assert cluster.link(0, 1, "send").kind == cluster.link(0, 1, "all_reduce").kind
        assert few < cluster.message_seconds(1 << 10, 1, 0)


def test_the_file_says_how_it_came_about(file: Path) -> None:
    body = yaml.safe_load(file.read_text())
    assert set(body) == {"calibration", "by_ranks"}
    assert {"date", "host", "processor", "system", "versions", "seconds", "provenance"} == set(
        body["calibration"]
    )
    came_from = body["calibration"]["provenance"]
    assert came_from["config"]["ranks"] == [2, 1] and "ranks=[2,1]" in came_from["command"]
    for ranks, entry in body["by_ranks"].items():
        notes = entry["calibration"]
        assert notes["ranks"] == ranks and "provenance" not in notes
        assert {"memory", "products", "logits", "swaps"} <= set(notes["spread"])
        assert {"products", "layers"} <= set(notes["errors"])
    assert "node gloo" in body["by_ranks"][2]["calibration"]["errors"]


def test_plans_are_made_with_it(file: Path) -> None:
    done = run("plan", f"cluster={file}", "output=json", "memory_gib=2")
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    plans, came_from = body["plans"], body["provenance"]
    assert {p["world_size"] for p in plans} == {1, 2} and {p["cluster"] for p in plans} == {"here"}
    written = yaml.safe_load(file.read_text())
    used = came_from["calibration"]
    assert used["file"] == str(file) and used["ranks"] == plans[0]["world_size"]
    assert used["date"] == written["calibration"]["date"]
    assert used["spread"] == written["by_ranks"][used["ranks"]]["calibration"]["spread"]
    done = run("plan", f"cluster={file}", "tp=3", "memory_gib=2")
    assert done.returncode == 2 and "describes 1, 2 ranks" in done.stderr


def test_ranks_that_torchrun_started(tmp_path: Path) -> None:
    path = tmp_path / "pair.yaml"
    arguments = (f"output={path}", "budget_seconds=0.1", "device=cpu", "collectives=gloo")
    done = run("calibrate", *arguments, torchrun=2)
    assert done.returncode == 0, done.stderr
    body = yaml.safe_load(path.read_text())
    assert "nodes" in body and body["calibration"]["ranks"] == 2
    cluster = load_cluster(path, CLUSTERS)
    assert cluster.device_count == 2 and cluster.nodes[0].link.kind == "loopback"
    assert [p.name for p in tmp_path.iterdir()] == ["pair.yaml"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["output is not given"]),
        (["output=here"], ["ends in .yaml", "output=here.yaml"]),
        (["output=/nowhere/here.yaml"], ["folder doesn't exist"]),
        (["output=here.yaml", "budget_seconds=0"], ["budget_seconds=0.0", "positive"]),
        (["output=here.yaml", "ranks=[0,1]"], ["ranks=[0, 1]", "at least 1"]),
        (["output=here.yaml", "ranks=[]"], ["ranks=[]"]),
        (["output=here.yaml", "threads=0"], ["threads=0"]),
        (["output=here.yaml", "collective_timeout_seconds=0"], ["collective_timeout_seconds=0"]),
        (["output=here.yaml", "bugdet_seconds=1"], ["did you mean 'budget_seconds'"]),
        (["output=here.yaml", "device=tpu"], ["tpu"]),
    ],
    ids=lambda v: v[-1] if v and "=" in v[-1] else "",
)
def test_bad_input_is_refused_with_what_to_do(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    done = run("calibrate", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())
