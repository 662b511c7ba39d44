"""Serving runs of other engines, predicted by the planner's step times and its simulation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from benchmarks.accuracy.engines import PeerEngine, engine_of
from benchmarks.accuracy.rows import FORMATS, Run, Skipped, devices, facts_of
from parallel.architecture.checkpoint import build_spec
from parallel.architecture.spec import ModelSpec, Role
from parallel.errors import TesseraError
from parallel.hardware.facts import Cluster, Link, Node
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.formats import Formats
from parallel.planner.load import Load
from parallel.planner.memory import kv_bytes_per_token
from parallel.planner.queueing import Rules, Simulation
from parallel.planner.timing import StepModel
from parallel.precision import FP8, Precision, precision

RESERVED_BYTES = 3 << 30
"""Activations and graphs beside weights and cache: what engines were seen to keep free."""


@dataclass(frozen=True)
class Error:
    """Relative errors of one row, with their signs."""

    run: Run
    ttft: float
    tpot: float


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
    """Seconds to the first token and per output token after it, means over requests. Raises
    `TesseraError` for a layout that can't be."""
    layout, machine = _layout(run.model, run.tp, run.pp), cluster(run.gpu, run.tp * run.pp)
    weights = FORMATS[run.weights]
    compute = precision("bf16") if weights == FP8 else weights
    cache = FP8 if weights == FP8 and engine.cache_bytes == 1 else compute
    formats = Formats(weights, compute, cache)
    model = StepModel(layout, machine, formats, engine.costs)
    rules = Rules(
        engine.step_tokens,
        run.batch,
        _cache_tokens(run, formats, engine.memory_share),
        block_tokens=16,
        mixed=engine.mixed,
        fair=False,
        reserve=engine.reserve,
    )
    load = Load(
        run.batch, run.input_tokens, run.output_tokens, engine.spread, prompts=engine.prompts
    )
    times = Simulation(load, rules, lambda work: model.step(work).seconds, engine.front).run()
    return times.ttft_seconds, times.tpot_seconds


def _cache_tokens(run: Run, formats: Formats, memory_share: float) -> int:
    """Room of the fullest rank, in tokens."""
    layout, machine = _layout(run.model, run.tp, run.pp), cluster(run.gpu, run.tp * run.pp)
    room = []
    for rank in range(layout.degrees.world_size):
        held = _weight_bytes(run.model, run.tp, run.pp, rank, formats.weights, formats.head)
        free = machine.device(rank).type.memory_bytes * memory_share - held - RESERVED_BYTES
        room.append(max(0, int(free / kv_bytes_per_token(layout, rank, formats))))
    return min(room)


@lru_cache(maxsize=1024)
def _weight_bytes(
    model: str, tp: int, pp: int, rank: int, weights: Precision, rest: Precision
) -> float:
    """Layers' matrices in the weights' format, tables and vectors in the other."""
    total = 0
    for shard in _layout(model, tp, pp).shards(rank):
        p = shard.parameter
        matrix = p.layer is not None and len(p.shape) > 1 and p.role is not Role.TOKEN_EMBEDDING
        total += shard.elements * (weights if matrix else rest).bytes
    return total


def errors(
    runs: Iterable[Run], known: Mapping[str, PeerEngine]
) -> tuple[list[Error], list[Skipped]]:
    """Of each run, or why it can't be predicted."""
    found, skipped = [], []
    for run in runs:
        try:
            ttft, tpot = predict(run, engine_of(run, known))
        except TesseraError as error:
            skipped.append(Skipped(run.line, str(error)))
            continue
        found.append(Error(run, ttft / run.ttft_seconds - 1, tpot / run.tpot_seconds - 1))
    return found, skipped
