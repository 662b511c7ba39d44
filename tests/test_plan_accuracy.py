"""What the benchmark of the planner makes of rows that nobody has seen before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy import fit_engines
from benchmarks.accuracy.engines import engine_key, engines
from benchmarks.accuracy.rows import Run, facts_of, models
from benchmarks.accuracy.serving import predict
from benchmarks.accuracy.summary import summary
from tests.commands import ROOT

HEADER = (
    "model,gpu,engine,engine_version,weights,input_tokens,output_tokens,batch,tp,pp,"
    "attention_dp,moe_tp,moe_ep,ttft_ms,tpot_ms"
)
ROWS = (
    "llama-3.1-8b,h100,vllm,1,bf16,1024,128,8,1,1,1,1,1,100,10",
    "somebodys-27b,h200_sxm,new-engine,1,fp8,512,64,4,2,1,1,1,1,100,10",
    "qwen3-32b,NVIDIA A100-SXM4-80GB,trtllm,,fp8,512,64,4,2,1,1,1,1,100,10",
    "mixtral-8x7b,h100,vllm,1,bf16,512,64,4,2,1,1,2,1,100,10",
    "qwen3-32b,h100,vllm,1,nvfp4,512,64,4,2,1,1,1,1,100,10",
    "llama-3.1-8b,abacus,vllm,1,bf16,512,64,4,2,1,1,1,1,100,10",
    "llama-3.1-8b,h100,vllm,1,bf16,512,64,many,2,1,1,1,1,100,10",
    "llama-3.1-8b,h100,vllm,1,bf16,512,64,4,2,1,1,1,1,100,0",
    "llama-3.1-8b,h100,vllm,1,bf16,512,64,4,48,1,1,1,1,100,10",
)
REASONS = {
    5: "experts",
    6: "nvfp4",
    7: "abacus",
    8: "can't be read",
    9: "above 0",
    10: "heads",
}


def evaluate(folder: Path) -> Any:
    command = [sys.executable, "benchmarks/plan_accuracy.py", f"evaluate={folder}", "output=json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else done


def test_rows_are_predicted_or_left_out_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "serving.csv").write_text("\n".join((HEADER, *ROWS)) + "\n")
    found = evaluate(tmp_path)["serving"]
    assert found["rows"] == 3
    assert set(found["by_model"]) == {"llama-3.1-8b", "somebodys-27b", "qwen3-32b"}
    assert set(found["by_gpu"]) == {"h100", "h200", "a100"}
    reasons = {entry["row"]: entry["reason"] for entry in found["skipped"]}
    assert sorted(reasons) == sorted(REASONS)
    assert all(word in reasons[line] for line, word in REASONS.items()), reasons


def test_the_half_kept_back_is_told_by_model_gpu_and_engine(tmp_path: Path) -> None:
    """Rows on odd lines: of the first three, the second."""
    (tmp_path / "serving.csv").write_text("\n".join((HEADER, *ROWS)) + "\n")
    command = [sys.executable, "benchmarks/plan_accuracy.py", f"evaluate={tmp_path}"]
    done = subprocess.run(
        [*command, "held_out=true"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "rows kept back (odd lines)" in done.stdout
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if "%" in line}
    for name in ("all", "somebodys-27b", "h200", "new-engine", "fp8"):
        assert rows.pop(name) == "1"
    assert set(rows) == {"serving"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give FILE.csv ENGINE"),
        (["serving.csv", "vlm"], "no engine 'vlm'"),
        (["serving.csv", "vllm", "h1000"], "h1000: 0 of 1 rows of 'vllm'"),
    ],
)
def test_a_fit_without_rows_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    (tmp_path / "serving.csv").write_text("\n".join((HEADER, ROWS[0])) + "\n")
    assert fit_engines.main([str(tmp_path / words[0]), *words[1:]] if words else []) == 2
    assert told in capsys.readouterr().err


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "serving.csv").write_text("model,gpu\nllama-3.1-8b,h100\n")
    done = evaluate(tmp_path)
    assert done.returncode == 2 and "has no column engine, weights" in done.stderr


@pytest.mark.parametrize(
    ("engine", "version", "weights", "key"),
    [
        ("vllm", "0.12.0", "fp8", "vllm 0.12.0 fp8"),
        ("vllm", "0.12.0", "bf16", "vllm 0.12"),
        ("vllm", "0.120", "bf16", "vllm"),
        ("vllm", "", "fp8", "vllm"),
        ("new-engine", "1", "fp8", "default"),
    ],
)
def test_a_run_takes_the_entry_that_says_most_of_it(
    engine: str, version: str, weights: str, key: str
) -> None:
    run = Run(2, "llama-3.1-8b", "h100", engine, version, weights, 1, 1, 1, 1, 1, 1.0, 1.0)
    assert engine_key(run, engines()) == key


def test_a_gpu_without_narrow_arithmetic_still_reads_narrow_weights() -> None:
    """A decode is bound by the weights: half the bytes take less, and no more than products in
    half precision do."""
    engine = engines()["default"]

    def next_token(weights: str, clients: int) -> float:
        run = Run(2, "llama-3.1-8b", "a100", "", "", weights, 64, 256, clients, 1, 1, 1.0, 1.0)
        return predict(run, engine)[1]

    assert 0.4 < next_token("fp8", 1) / next_token("bf16", 1) < 0.8
    assert next_token("fp8", 64) < next_token("bf16", 64)


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
