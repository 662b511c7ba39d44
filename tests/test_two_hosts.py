"""Ranks on two hosts with a slow network between: calibrated there, planned with that, run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from parallel.hardware.catalogue import load_cluster
from parallel.planner.memory import FRONT_BYTES, TOKENIZER_WORD_BYTES
from parallel.units import GIB, KIB
from tests.commands import ROOT, run
from tests.two_hosts import TwoHosts, two_hosts, why_not

CLUSTERS = ROOT / "configs/clusters"
DELAY_MS = 2.0
LAYERS = 4
KEYS = (
    *("engine.step_tokens=32", "engine.requests=2", "engine.context_tokens=64"),
    *("workload.input_tokens=8", "workload.output_tokens=16", "workload.concurrency=1"),
)
WORDS = 64000
SPLITS = {"tp": ("tp=2", "pp=1"), "pp": ("tp=1", "pp=2")}
Json = dict[str, Any]


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    if reason := why_not():
        pytest.skip(reason)
    with two_hosts(DELAY_MS) as made:
        yield made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Most of it is embedding and head; its layers take far less time than a packet's way."""
    config = transformers.LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=WORDS,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        eos_token_id=None,
        bos_token_id=None,
    )
    path = tmp_path_factory.mktemp("models") / "llama"
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def cluster(hosts: TwoHosts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two hosts as their own ranks measured them."""
    file = tmp_path_factory.mktemp("cluster") / "pair.yaml"
    hosts.torchrun("launch/calibrate.py", f"output={file}", "budget_seconds=0.1", "device=cpu")
    return file


@pytest.fixture(scope="module")
def room(cluster: Path, model: Path) -> str:
    """Memory for more than half of the model on each host, and for less than the whole."""
    devices = load_cluster(cluster, CLUSTERS).devices
    weights = (model / "model.safetensors").stat().st_size
    held = max(device.type.runtime_bytes for device in devices)
    room_bytes = held + FRONT_BYTES + WORDS * TOKENIZER_WORD_BYTES + 0.8 * weights
    return f"memory_gib={room_bytes / GIB}"


@pytest.fixture(scope="module")
def planned(cluster: Path, model: Path, room: str) -> Json:
    keys = (f"model={model}", f"cluster={cluster}", room, *KEYS)
    done = run("plan", *keys, "objective=latency", "output=json")
    assert done.returncode == 0, done.stderr
    found: Json = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def measured(
    hosts: TwoHosts, cluster: Path, model: Path, room: str, tmp_path_factory: Any
) -> dict[str, Json]:
    """What came of either split."""
    folder: Path = tmp_path_factory.mktemp("measured")
    for name, degrees in SPLITS.items():
        keys = (f"model={model}", f"cluster={cluster}", room, *degrees, *KEYS)
        output = f"output={folder / name}.json"
        hosts.torchrun("launch/measure.py", *keys, "baseline=none", "repeats=1", output)
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in SPLITS}


def test_calibration_finds_what_lies_between_the_hosts(hosts: TwoHosts, cluster: Path) -> None:
    found = load_cluster(cluster, CLUSTERS)
    assert [node.name for node in found.nodes] == list(hosts.names)
    for operation, ways in (("send", 1), ("all_reduce", 2)):
        seconds = found.collective_seconds(operation, KIB, (0, 1))
        assert seconds >= ways * DELAY_MS / 1e3, operation
    for device in found.devices:
        # Only a job's leader sees what a step takes; either host may have it.
        assert device.type.overheads is not None and device.type.overheads.step_seconds > 0


def test_the_plan_has_stages_on_the_hosts(planned: Json) -> None:
    """The model doesn't fit on one: pipeline is chosen, and tensor parallelism named beside it."""
    pp, tp = planned["plans"]
    assert [(p["tp"], p["pp"], p["dp"]) for p in (pp, tp)] == [(1, 2, 1), (2, 1, 1)]
    assert pp["decode"]["seconds"] < tp["decode"]["seconds"]
    assert pp["tokens_per_second"] > tp["tokens_per_second"]
    # Hidden states go there, tokens come back.
    assert pp["decode"]["communication_seconds"] > 2 * DELAY_MS / 1e3
    assert tp["decode"]["communication_seconds"] > 2 * LAYERS * 2 * DELAY_MS / 1e3
    assert planned["choice"].startswith("tp=1 pp=2 dp=1: ")
    assert "tp=2 pp=1 dp=1" in planned["choice"]


def test_hosts_share_no_memory(measured: dict[str, Json]) -> None:
    """Nobody asked for a backend: the ranks saw that they are on two hosts."""
    assert measured["tp"]["environment"]["axes"] == [
        "tp: 2 ranks over gloo (its ranks are on 2 hosts)"
    ]
    (pp,) = measured["pp"]["environment"]["axes"]
    assert pp.startswith("pp: 2 ranks over gloo")


def test_the_run_agrees_with_the_plan(measured: dict[str, Json]) -> None:
    """Each all-reduce of each layer waits for packets under way; stages wait for a few of a step.
    It is that much slower whatever else the machine does."""
    pp, tp = (measured[name]["layout"] for name in ("pp", "tp"))
    assert tp["phases"]["decode"]["step_ms"]["measured"] > 2 * LAYERS * 2 * DELAY_MS
    assert pp["tokens_per_second"]["measured"] > tp["tokens_per_second"]["measured"]
