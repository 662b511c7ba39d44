"""Live tensors of a step: what the planner predicts against what real steps hold."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from benchmarks.random_llama import ensure_random_llama
from parallel.conversion.resolve import resolve_model
from parallel.planner.memory import CHANNEL_BYTES
from tests.activation_cases import any_steps
from tests.checkpoints import CONFIGS, make_checkpoint
from tests.rank_pool import RankPool

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2)]


def check(found: list[list[dict[str, int]]]) -> Iterator[dict[str, int]]:
    """Weights and cache exact, activations within 5 %, but for `late`: gloo's thread lets one go
    when it gets to it, and that may be after its last use. Never more than predicted."""
    for f in (f for rank in found for f in rank):
        assert (f["weights"], f["kv_cache"]) == (0, 0)
        assert f["planned"] == f["predicted"]
        assert f["predicted"] - f["late"] <= 1.05 * f["measured"]
        assert f["measured"] <= f["predicted"]
        yield f


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
    found = pool.run("tests.activation_cases:peaks", tp * pp, degrees=[tp, pp], cases=cases)
    checked = list(check(found))
    over = [(f["held"] + f["predicted"]) / (f["held"] + f["measured"]) - 1 for f in checked]
    alone = [f["predicted"] / f["measured"] - 1 for f in checked]
    print(f"{model} tp={tp} pp={pp}: peak +{max(over):.2%}, activations alone +{max(alone):.1%}")
    assert max(over) <= 0.03


def test_what_stages_send_through_shared_memory_is_not_kept(
    pool: RankPool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It is in the ring, whose bytes are the plan's."""
    model = make_checkpoint("llama-5-heads-1-kv", tmp_path_factory.getbasetemp())
    limits = {"step_tokens": 48, "requests": 6, "context_tokens": 200}
    case = {"model": str(model), "limits": limits}
    cases = "tests.activation_cases:peaks"
    found = pool.run(cases, 2, degrees=[1, 2], cases=[case], collectives="auto")
    for f in check(found):
        assert f["late"] == 0
        assert f["real_buffers"] == f["buffers"] == CHANNEL_BYTES


@pytest.mark.parametrize(("tp", "pp"), LAYOUTS)
def test_peak_of_every_family(
    pool: RankPool, tmp_path_factory: pytest.TempPathFactory, tp: int, pp: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    cases: list[dict[str, Any]] = [
        {
            "model": str(make_checkpoint(name, folder)),
            "limits": {
                "step_tokens": 48,
                "requests": 6,
                "context_tokens": 200,
                "kernels": kernels,
            },
            "weights": "fp32" if tp == pp else "bf16",
        }
        for name, kernels in product(CONFIGS, ("auto", "portable"))
    ]
    found = pool.run("tests.activation_cases:peaks", tp * pp, degrees=[tp, pp], cases=cases)
    assert len(list(check(found))) == len(cases) * tp * pp


@pytest.mark.parametrize("weights", ["bf16", "fp32"])
@pytest.mark.parametrize("cache", ["int8", "fp8"])
def test_peak_with_a_cache_in_eight_bits(
    cache: str, weights: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = make_checkpoint("qwen3", tmp_path_factory.getbasetemp())
    for predicted, measured in any_steps(str(model), weights, 6, 2, "auto", cache):
        assert measured <= predicted <= 1.03 * measured


@pytest.mark.parametrize("kernels", ["auto", "portable"])
@pytest.mark.parametrize("name", CONFIGS)
def test_peak_of_any_step(
    name: str, kernels: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Through all layers, whatever the chunks."""
    model = make_checkpoint(name, tmp_path_factory.getbasetemp())
    for predicted, measured in any_steps(str(model), "bf16", 6, len(name), kernels):
        assert measured <= predicted <= 1.02 * measured
