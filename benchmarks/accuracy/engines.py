"""How other engines run: the few facts that the planner needs to predict their measured times.

Each number has one physical meaning (parallel/planner/costs.py says which) and holds for all rows
of a version, whatever model, GPU or degree. Fitted by fit_engines.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.accuracy.rows import Run
from parallel.hardware.fields import read_yaml
from parallel.hardware.overheads import Overheads
from parallel.planner.costs import EngineCosts
from parallel.planner.front import FrontCosts

FILE = Path(__file__).with_name("engines.yaml")


@dataclass(frozen=True)
class PeerEngine:
    """`step_tokens` a batch takes at most, `mixed` if prompts go beside decodes, `memory_share` of
    a device that it fills with weights and cache, `cache_bytes` of a cached element under fp8.
    `reserve`: a request waits for room for all its tokens, TensorRT-LLM's default
    (GUARANTEED_NO_EVICT) and SGLang's in effect; vLLM takes blocks on demand. `spread` of the
    lengths in the load generator, evenly around those given; `prompts` that it has, if it repeats
    them and the engine finds them in its cache."""

    costs: EngineCosts
    front: FrontCosts
    step_tokens: int = 8192
    mixed: bool = True
    reserve: bool = True
    memory_share: float = 0.9
    cache_bytes: int = 1
    spread: float = 0.2
    prompts: int = 0


def read_engine(facts: Mapping[str, Any]) -> PeerEngine:
    """Keys of `Overheads`, `FrontCosts`, `EngineCosts` and `PeerEngine` side by side; an unknown
    one is a `TypeError`."""

    def of(kind: type) -> dict[str, Any]:
        return {f.name: facts[f.name] for f in fields(kind) if f.name in facts}

    own, overheads, front = of(PeerEngine), of(Overheads), of(FrontCosts)
    costs = {k: v for k, v in facts.items() if k not in {**own, **overheads, **front}}
    return PeerEngine(EngineCosts(Overheads(**overheads), **costs), FrontCosts(**front), **own)


def engines() -> dict[str, PeerEngine]:
    return {name: read_engine(facts) for name, facts in read_yaml(FILE).items()}


def engine_key(run: Run, known: Iterable[str]) -> str:
    """The longest of `known` that the run's "engine version weights" begins with; `default` for
    an engine that isn't there."""
    words = f"{run.engine} {run.version} {run.weights}"
    fitting = (k for k in known if words.startswith(k) and not words[len(k) : len(k) + 1].isdigit())
    return max(fitting, key=len, default="default")


def engine_of(run: Run, known: Mapping[str, PeerEngine]) -> PeerEngine:
    return known[engine_key(run, known)]
