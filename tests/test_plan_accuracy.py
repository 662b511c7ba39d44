"""What the benchmark of the planner makes of rows that nobody has seen before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy.serving import facts_of, models
from benchmarks.accuracy.summary import summary
from tests.commands import ROOT

HEADER = (
    "model,gpu,engine,engine_version,weights,input_tokens,output_tokens,batch,tp,pp,"
    "attention_dp,moe_tp,moe_ep,ttft_ms,tpot_ms"
)
ROWS = (
    "llama-3.1-8b,h100,vllm,1,bf16,1024,128,8,1,1,1,1,1,100,10",
    "somebodys-27b,h200_sxm,new-engine,1,fp8,512,64,4,2,1,1,1,1,100,10",
    "mixtral-8x7b,h100,vllm,1,bf16,512,64,4,2,1,1,2,1,100,10",
    "qwen3-32b,h100,vllm,1,nvfp4,512,64,4,2,1,1,1,1,100,10",
    "llama-3.1-8b,abacus,vllm,1,bf16,512,64,4,2,1,1,1,1,100,10",
)


def evaluate(folder: Path) -> Any:
    command = [sys.executable, "benchmarks/plan_accuracy.py", f"evaluate={folder}", "output=json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else done


def test_rows_are_predicted_or_left_out_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "serving.csv").write_text("\n".join((HEADER, *ROWS)) + "\n")
    found = evaluate(tmp_path)["serving"]
    assert found["rows"] == 2
    assert set(found["by_model"]) == {"llama-3.1-8b", "somebodys-27b"}
    assert set(found["by_gpu"]) == {"h100", "h200"}
    reasons = {entry["row"]: entry["reason"] for entry in found["skipped"]}
    assert sorted(reasons) == [4, 5, 6]
    assert "experts" in reasons[4] and "nvfp4" in reasons[5] and "abacus" in reasons[6]


def test_an_unknown_dense_model_has_the_size_of_its_name() -> None:
    facts = facts_of("somebodys-27b")
    assert facts is not None and "somebodys-27b" not in models()
    layers, hidden, heads, kv_heads, dim, width, vocabulary, tied = facts
    layer = 2 * hidden * (heads + kv_heads) * dim + 3 * hidden * width
    total = layers * layer + vocabulary * hidden * (1 if tied else 2)
    assert total == pytest.approx(27e9, rel=0.01)
    assert facts_of("qwen3-235b-a22b") is None and facts_of("nameless") is None


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    done = evaluate(tmp_path)
    assert done.returncode == 2 and "holds none of serving, collectives, gemm" in done.stderr


def test_the_percentile_covers_nine_of_ten() -> None:
    found = summary([-0.1, 0.2, 0.3, -0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 10.0])
    assert (found["p90"], found["median"]) == (0.9, pytest.approx(0.55))
