"""Live tensors of a step: what the planner predicts against what real steps hold."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_llama import ensure_random_llama
from parallel.conversion.default_model import DEFAULT_MODEL
from parallel.conversion.resolve import resolve_model
from tests.checkpoints import CONFIGS, make_checkpoint
from tests.rank_pool import RankPool

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2)]


@pytest.fixture(scope="module")
def default_model() -> Path:
    return resolve_model(None)


def check(found: list[list[dict[str, int]]], tolerance: float) -> None:
    for rank in found:
        for f in rank:
            assert (f["weights"], f["kv_cache"]) == (0, 0)
            assert f["planned"] == f["predicted"]
            assert f["measured"] <= f["predicted"] <= (1 + tolerance) * f["measured"], f


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
@pytest.mark.parametrize("model", ["default", "random"])
def test_peak_of_real_models(pool: RankPool, model: str, tp: int, pp: int) -> None:
    path = resolve_model(None) if model == "default" else ensure_random_llama()
    cases = [
        {
            "model": str(path),
            "limits": {"step_tokens": 512, "requests": batch, "context_tokens": prompt + 32},
        }
        for batch, prompt in product((1, 4, 16), (128, 1024))
    ]
    check(pool.run("tests.activation_cases:peaks", tp * pp, degrees=[tp, pp], cases=cases), 0.03)


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_peak_of_every_family(
    pool: RankPool, tmp_path_factory: pytest.TempPathFactory, tp: int, pp: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    cases: list[dict[str, Any]] = [
        {
            "model": str(make_checkpoint(name, folder)),
            "limits": {"step_tokens": 48, "requests": 6, "context_tokens": 200},
            "weights": weights,
        }
        for name, weights in product(CONFIGS, ("fp32", "bf16"))
    ]
    check(pool.run("tests.activation_cases:peaks", tp * pp, degrees=[tp, pp], cases=cases), 0.1)
