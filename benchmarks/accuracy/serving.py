"""Serving runs of other engines, predicted by the planner's step times and its simulation."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.accuracy.engines import PeerEngine
from benchmarks.accuracy.kernels import DEVICES
from parallel.architecture.checkpoint import build_spec
from parallel.architecture.spec import ModelSpec, Role
from parallel.hardware.facts import Cluster, Link, Node
from parallel.hardware.fields import read_yaml
from parallel.hardware.known import KnownDevice, known_devices
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.formats import Formats
from parallel.planner.load import Load
from parallel.planner.memory import kv_bytes_per_token
from parallel.planner.queueing import Rules, Simulation
from parallel.planner.timing import StepModel
from parallel.precision import FP8, Precision, precision

MODELS = Path(__file__).with_name("models.yaml")
FORMATS = {"bf16": precision("bf16"), "fp16": precision("fp16"), "fp8": FP8, "fp8_block": FP8}
_EXPERTS = re.compile(r"-a\d|\dx\d|moe|mixtral|gpt-oss|deepseek-(v|r1$)|kimi|llama-4|glm-4\.")
RESERVED_BYTES = 3 << 30
"""Activations and graphs beside weights and cache: what engines were seen to keep free."""


@dataclass(frozen=True)
class Run:
    """One row: `batch` requests at once, and what was measured in seconds."""

    line: int
    model: str
    gpu: str
    engine: str
    weights: str
    input_tokens: int
    output_tokens: int
    batch: int
    tp: int
    pp: int
    ttft_seconds: float
    tpot_seconds: float


@dataclass(frozen=True)
class Skipped:
    line: int
    reason: str


@dataclass(frozen=True)
class Error:
    """Relative errors of one row, with their signs."""

    run: Run
    ttft: float
    tpot: float


def read_runs(path: Path) -> tuple[list[Run], list[Skipped]]:
    """The rows of dense models in a known format, and why the others are left out."""
    gpus = devices()
    runs, skipped = [], []
    with path.open(newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            reason = _reason(row, gpus)
            if reason is not None:
                skipped.append(Skipped(line, reason))
            else:
                name = _device_name(row["gpu"], gpus)
                runs.append(_run(line, {**row, "gpu": name or ""}))
    return runs, skipped


def _reason(row: Mapping[str, str], gpus: Mapping[str, KnownDevice]) -> str | None:
    if row["weights"] not in FORMATS:
        return f"weights in {row['weights']} aren't timed"
    if facts_of(row["model"]) is None:
        return f"{row['model']}: experts aren't timed, nor models whose name doesn't say their size"
    if _device_name(row["gpu"], gpus) is None:
        return f"no device type is like {row['gpu']}"
    return None


def _run(line: int, row: Mapping[str, str]) -> Run:
    return Run(
        line,
        row["model"],
        row["gpu"],
        row["engine"],
        row["weights"],
        int(row["input_tokens"]),
        int(row["output_tokens"]),
        int(row["batch"]),
        int(row["tp"]),
        int(row.get("pp") or 1),
        float(row["ttft_ms"]) / 1e3,
        float(row["tpot_ms"]) / 1e3,
    )


@lru_cache
def models() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = read_yaml(MODELS)
    return found


@lru_cache
def facts_of(name: str) -> list[Any] | None:
    """A model's row; of one that isn't there, the dense one nearest in size with its FFN made
    wider or narrower to the billions of parameters that the name says."""
    if name in models():
        return models()[name]
    size = re.search(r"(\d+(?:\.\d+)?)b(?![a-z0-9])", name.lower())
    if size is None or _EXPERTS.search(name.lower()):
        return None
    wanted = float(size[1]) * 1e9
    near = min(models().values(), key=lambda facts: abs(math.log(_parameters(facts) / wanted)))
    layers, hidden, *_, width, _vocabulary, _tied = near
    width += round((wanted - _parameters(near)) / (3 * layers * hidden))
    return [*near[:5], max(hidden, width), *near[6:]]


def _parameters(facts: list[Any]) -> float:
    layers, hidden, heads, kv_heads, dim, width, vocabulary, tied = facts
    layer = 2 * hidden * (heads + kv_heads) * dim + 3 * hidden * width
    return float(layers * layer + vocabulary * hidden * (1 if tied else 2))


def _device_name(gpu: str, known: Mapping[str, KnownDevice]) -> str | None:
    """The type called so, or the longest that the name begins with: `h100_sxm` is an H100."""
    word = gpu.lower().replace("-", "_")
    found = [name for name in known if word == name or word.startswith(f"{name}_")]
    return max(found, key=len, default=None)


@lru_cache
def devices() -> dict[str, KnownDevice]:
    return known_devices(DEVICES)


@lru_cache
def model_spec(name: str) -> ModelSpec:
    facts = facts_of(name)
    assert facts is not None, "rows of unknown models are skipped"
    layers, hidden, heads, kv_heads, dim, width, vocabulary, tied = facts
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": dim,
        "vocab_size": vocabulary,
        "max_position_embeddings": 1 << 20,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }
    return build_spec(config, None, name)


@lru_cache
def cluster(gpu: str, count: int) -> Cluster:
    known = devices()[gpu]
    link = known.link or Link("pcie", 25e9, 5e-6)
    return Cluster(gpu, (Node("node", (known.type,) * count, link, 64, 1 << 40),))


@lru_cache(maxsize=64)
def _layout(model: str, tp: int, pp: int) -> Layout:
    return Layout.make(model_spec(model), Degrees(tp=tp, pp=pp))


def predict(run: Run, engine: PeerEngine) -> tuple[float, float]:
    """Seconds to the first token and per output token after it, means over requests."""
    layout, machine = _layout(run.model, run.tp, run.pp), cluster(run.gpu, run.tp * run.pp)
    weights = FORMATS[run.weights]
    compute = precision("bf16") if weights == FP8 else weights
    cache = FP8 if weights == FP8 and engine.cache_bytes == 1 else compute
    formats = Formats(weights, compute, cache)
    model = StepModel(layout, machine, formats, engine.costs)
    rules = Rules(
        engine.step_tokens,
        run.batch,
        _cache_tokens(layout, machine, formats, engine),
        block_tokens=16,
        mixed=engine.mixed,
        fair=False,
        reserve=engine.reserve,
    )
    load = Load(run.batch, run.input_tokens, run.output_tokens, engine.spread)
    times = Simulation(load, rules, lambda work: model.step(work).seconds, engine.front).run()
    return times.ttft_seconds, times.tpot_seconds


def _cache_tokens(layout: Layout, machine: Cluster, formats: Formats, engine: PeerEngine) -> int:
    """Room of the fullest rank, in tokens."""
    room = []
    for rank in range(layout.degrees.world_size):
        device = machine.device(rank).type
        held = _weight_bytes(layout, rank, formats.weights, formats.head)
        free = device.memory_bytes * engine.memory_share - held - RESERVED_BYTES
        room.append(max(0, int(free / kv_bytes_per_token(layout, rank, formats))))
    return min(room)


def _weight_bytes(layout: Layout, rank: int, weights: Precision, rest: Precision) -> float:
    """Layers' matrices in the weights' format, tables and vectors in the other."""
    total = 0
    for shard in layout.shards(rank):
        p = shard.parameter
        matrix = p.layer is not None and len(p.shape) > 1 and p.role is not Role.TOKEN_EMBEDDING
        total += shard.elements * (weights if matrix else rest).bytes
    return total


def errors(runs: Iterable[Run], known: Mapping[str, PeerEngine]) -> list[Error]:
    found = []
    for run in runs:
        ttft, tpot = predict(run, known.get(run.engine, known["default"]))
        found.append(Error(run, ttft / run.ttft_seconds - 1, tpot / run.tpot_seconds - 1))
    return found
