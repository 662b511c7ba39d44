"""`launch/plan.py` from the shell: its contract, its speed's cause (no torch), its refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.checkpoints import make_checkpoint
from tests.commands import ROOT, run

MEMORY = {
    "weights",
    "kv_cache",
    "activations",
    "communication",
    "runtime",
    "swap",
    "peak_tensors",
    "total",
    "budget",
}


@pytest.mark.parametrize("spelling", ["tp=2", "+tp=2", "++tp=2"])
def test_json_holds_the_contract(spelling: str) -> None:
    done = run("plan", spelling, "output=json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plans"][0]
    assert (plan["tp"], plan["pp"], plan["dp"], plan["world_size"]) == (2, 1, 1, 2)
    assert [r["coordinates"] for r in plan["ranks"]] == [
        {"tp": 0, "pp": 0, "dp": 0},
        {"tp": 1, "pp": 0, "dp": 0},
    ]
    for rank in plan["ranks"]:
        memory = rank["memory_bytes"]
        assert set(memory) == MEMORY
        assert memory["total"] <= memory["budget"]
    assert plan["stages"] == [
        {"layers": [0, 30], "tp": 2, "ranks": [0, 1], "embedding": True, "head": True}
    ]
    assert plan["precision"] == {"weights": "bf16", "compute": "bf16", "kv_cache": "bf16"}
    for phase in ("prefill", "decode"):
        assert plan[phase]["communication_bytes"] > 0
        for figure in ("seconds", "bytes"):
            whole = plan[phase][f"communication_{figure}"]
            each = plan[phase][f"communication_{figure}_per_token"]
            assert each * plan[phase]["tokens"] == pytest.approx(whole)
    assert plan["ttft_ms"] > 0 and plan["tpot_ms"] > 0 and plan["tokens_per_second"] > 0


def test_a_cache_in_eight_bits_has_room_for_nearly_twice_the_tokens() -> None:
    """64 elements of 2 bytes, or of one and a scale of 2, for each vector."""
    command = ("cluster=8xh100", "tp=1", "memory_gib=12", "engine.requests=256", "output=json")
    plans = [
        json.loads(run("plan", *command, *more).stdout)["plans"][0]
        for more in ([], ["precision.kv_cache=int8"])
    ]
    assert plans[1]["precision"]["kv_cache"] == "int8"
    sizes = [p["ranks"][0]["memory_bytes"]["kv_cache"] / p["kv_cache_tokens"] for p in plans]
    assert sizes == pytest.approx([30 * 2 * 3 * 128, 30 * 2 * 3 * 66], rel=1e-3)
    tokens = [p["kv_cache_tokens"] for p in plans]
    assert tokens[1] / tokens[0] == pytest.approx(128 / 66, rel=0.01)


def test_stages_with_their_own_degrees() -> None:
    done = run("plan", "stage_tp=[2,1]", "stages=[20,10]", "dp=2", "output=json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)["plans"][0]
    assert (plan["tp"], plan["pp"], plan["dp"], plan["world_size"]) == (2, 2, 2, 6)
    assert plan["stage_tp"] == [2, 1]
    assert [(s["tp"], s["ranks"], s["layers"]) for s in plan["stages"]] == [
        (2, [0, 1, 3, 4], [0, 20]),
        (1, [2, 5], [20, 30]),
    ]
    assert [tuple(r["coordinates"].values()) for r in plan["ranks"]] == [
        *((0, 0, 0), (1, 0, 0), (0, 1, 0)),
        *((0, 0, 1), (1, 0, 1), (0, 1, 1)),
    ]
    table = run("plan", "stage_tp=[2,1]")
    assert table.returncode == 0 and "Plan: stage_tp=[2,1] dp=1" in table.stdout


@pytest.mark.parametrize("tp", range(1, 10))
def test_the_default_model_takes_every_degree_up_to_its_heads(tp: int) -> None:
    done = run("plan", f"tp={tp}", "output=json", "memory_gib=4")
    assert done.returncode == 0, done.stderr
    ranks = json.loads(done.stdout)["plans"][0]["ranks"]
    assert len(ranks) == tp


def test_planning_needs_neither_torch_nor_weights(tmp_path: Path) -> None:
    config = json.loads(
        (ROOT / "parallel/conversion/SmolLM2-135M-Instruct/config.json").read_text()
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = (
        "import sys; sys.argv = ['plan', 'model=" + str(tmp_path) + "', 'cluster=8xh100'];"
        "import runpy\n"
        "try: runpy.run_path('launch/plan.py', run_name='__main__')\n"
        "except SystemExit as leaving: assert leaving.code == 0, leaving.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["default", "SmolLM2-135M-Instruct", "null"])
def test_the_default_model_by_name(name: str) -> None:
    done = run("plan", "tp=2", f"model={name}", "output=json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plans"][0]["model"] == "SmolLM2-135M-Instruct"


def test_table_names_bytes_by_cause_and_communication() -> None:
    done = run("plan", "tp=2")
    assert done.returncode == 0
    for word in ("weights", "KV cache", "decode", "communication", "tokens/s"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tq=2"], ["unknown key 'tq'", "did you mean 'tp'"]),
        (["+tq=2"], ["unknown key 'tq'", "did you mean 'tp'"]),
        (["workload.input_token=2"], ["did you mean 'workload.input_tokens'"]),
        (["tp=two"], ["tp", "two"]),
        (["tp=-1"], ["tp=-1", "at least 1"]),
        (["tp=12"], ["9 query heads", "1 to 9"]),
        (["pp=31"], ["30 layers"]),
        (["tp=2", "pp=2", "stages=[1,2]"], ["stages=[1, 2]", "30 layers"]),
        (["stage_tp=[2,1]", "tp=4"], ["stage_tp=[2,1] means tp=2", "leave tp and pp out"]),
        (["stage_tp=[2,0]"], ["stage_tp=[2,0]", "at least 1"]),
        (["stage_tp=[]"], ["stage_tp=[]", "such as stage_tp=[2,1]"]),
        (["stage_tp=[1,12]"], ["tp=12 of stage 1", "9 query heads", "use stage_tp=[1,9]"]),
        (["stage_tp=[2,1]", "stages=[10,10,10]"], ["pp=2", "30 layers"]),
        (["tp=2", "heads=gruops"], ["did you mean 'groups'"]),
        (["tp=4", "heads=groups"], ["whole KV groups"]),
        (["cluster=9xh100"], ["unknown cluster", "8xh100"]),
        (["cluster=8xh100", "tp=9"], ["rank 8 has no device", "8"]),
        (["objective=latenci"], ["did you mean 'latency'", "throughput, latency, cost"]),
        (["slo.ttft_ms=-5"], ["slo.ttft_ms=-5", "positive"]),
        (
            ["cluster=8xh100", "slo.tpot_ms=0.001"],
            ["layouts fit, all break the limits; nearest is tp=", "allow slo.tpot_ms="],
        ),
        (["precision.weights=bf15"], ["bf15", "bf16"]),
        (["precision.kv_cache=int4"], ["precision.kv_cache 'int4'", "did you mean 'int8'"]),
        (["tp=2", "memory_gib=0.3"], ["doesn't fit", "budget", "memory_gib="]),
        (["memory_gib=0"], ["memory_gib=0"]),
        (["workload.concurrency=0"], ["workload.concurrency=0"]),
        (["engine.queue=0"], ["engine.queue=0", "at least 1"]),
        (["engine.swap_gib=-1"], ["engine.swap_gib=-1", "a size in GiB"]),
        (["engine.kernels=nativ"], ["did you mean 'native'", "auto, native, portable"]),
        (
            ["engine.attention=flash_atn"],
            ["did you mean 'flash_attn'", "legal: auto, sdpa, native"],
        ),
        (["engine.sequence_parallel=yes"], ["engine.sequence_parallel=yes", "auto, on, off"]),
        (["engine.prefix_cache=maybe"], ["engine.prefix_cache", "maybe"]),
        (["output=jsno"], ["jsno"]),
        (["model=/nowhere"], ["/nowhere", "does not exist"]),
        (["tp=[1"], ["tp=[1"]),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) and "=" in v[-1] else "",
)
def test_bad_input_is_refused_with_what_to_do(arguments: list[str], words: list[str]) -> None:
    done = run("plan", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_no_legal_plan_is_json_all_the_same() -> None:
    done = run("plan", "tp=12", "output=json")
    assert done.returncode == 2
    body = json.loads(done.stdout)
    assert body["plans"] == []
    assert body["rejected"][0]["tp"] == 12
    assert "legal here: tp 1 to 9" in body["rejected"][0]["reason"]
    assert body["rejected"][0]["suggestion"] == "use tp=9 pp=1 dp=1"


def test_directory_without_a_config_and_truncated_weights(tmp_path: Path) -> None:
    done = run("plan", f"model={tmp_path}")
    assert done.returncode == 2 and "has no config.json" in done.stderr
    path = make_checkpoint("qwen3", tmp_path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = run("plan", f"model={path}")
    assert done.returncode == 2 and "truncated" in done.stderr


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_yaml_leaves_degrees_to_the_planner(file: Path) -> None:
    """A value there would break `+tp=4`."""
    body = yaml.safe_load(file.read_text())
    assert [body.get(axis) for axis in ("tp", "pp", "dp")] == [None, None, None]


@pytest.mark.parametrize(
    "cluster", sorted(p.stem for p in (ROOT / "configs/clusters").glob("*.yaml"))
)
def test_every_cluster_plans(cluster: str) -> None:
    done = run("plan", f"cluster={cluster}", "output=json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plans"]
