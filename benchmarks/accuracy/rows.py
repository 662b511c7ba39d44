"""Rows of serving runs of other engines: read, or left out with a reason."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.accuracy.kernels import DEVICES
from parallel.errors import ConfigError
from parallel.hardware.fields import read_yaml
from parallel.hardware.known import KnownDevice, known_devices
from parallel.precision import FP8, precision

MODELS = Path(__file__).with_name("models.yaml")
FORMATS = {"bf16": precision("bf16"), "fp16": precision("fp16"), "fp8": FP8, "fp8_block": FP8}
_EXPERTS = re.compile(r"-a\d|\dx\d|moe|mixtral|gpt-oss|deepseek-(v|r1$)|kimi|llama-4|glm-4\.")
_COLUMNS = (
    *("model", "gpu", "engine", "weights", "input_tokens", "output_tokens", "batch", "tp"),
    *("ttft_ms", "tpot_ms"),
)


@dataclass(frozen=True)
class Run:
    """One row: `batch` requests at once over all replicas, and what was measured in seconds."""

    line: int
    model: str
    gpu: str
    engine: str
    version: str
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


def read_runs(path: Path) -> tuple[list[Run], list[Skipped]]:
    """The rows of dense models in a known format, and why the others are left out. Raises
    `ConfigError` where columns are missing."""
    gpus = devices()
    runs, skipped = [], []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ConfigError(
                f"{path} has no column {', '.join(missing)}; add it to the first line"
            )
        for line, row in enumerate(reader, start=2):
            found = _reason(row, gpus) or _run(line, row, gpus)
            if isinstance(found, Run):
                runs.append(found)
            else:
                skipped.append(Skipped(line, found))
    return runs, skipped


def _reason(row: Mapping[str, str], gpus: Mapping[str, KnownDevice]) -> str | None:
    if row["weights"] not in FORMATS:
        return f"weights in {row['weights']} aren't timed"
    if facts_of(row["model"]) is None:
        return f"{row['model']}: experts aren't timed, nor models whose name doesn't say their size"
    if device_name(row["gpu"], gpus) is None:
        return f"no device type is like {row['gpu']}"
    return None


def _run(line: int, row: Mapping[str, str], gpus: Mapping[str, KnownDevice]) -> Run | str:
    """The reason where a figure can't be read or can't be."""

    def count(name: str) -> int:
        return int(float(row.get(name) or 1))

    try:
        run = Run(
            line,
            row["model"],
            device_name(row["gpu"], gpus) or "",
            row["engine"],
            row.get("engine_version") or "",
            row["weights"],
            count("input_tokens"),
            count("output_tokens"),
            count("batch"),
            count("tp"),
            count("pp"),
            float(row["ttft_ms"]) / 1e3,
            float(row["tpot_ms"]) / 1e3,
        )
    except (TypeError, ValueError) as error:
        return f"can't be read: {error}"
    figures = (run.input_tokens, run.output_tokens, run.batch, run.tp, run.pp)
    times = (run.ttft_seconds, run.tpot_seconds)
    if min(figures) < 1 or not all(0 < seconds < math.inf for seconds in times):
        return "tokens, requests, degrees and times must be above 0"
    return run


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


def device_name(gpu: str, known: Mapping[str, KnownDevice]) -> str | None:
    """The type called so, by its file's name or its driver's, or the longest that the name begins
    with: `h100_sxm` is an H100."""
    word = _word(gpu)
    names = {_word(alias): name for name in known for alias in (name, *known[name].driver_names)}
    found = [alias for alias in names if word == alias or word.startswith(f"{alias}_")]
    return names[max(found, key=len)] if found else None


def _word(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_").removeprefix("nvidia_")


@lru_cache
def devices() -> dict[str, KnownDevice]:
    return known_devices(DEVICES)
