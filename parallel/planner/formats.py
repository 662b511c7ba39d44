"""Which number formats a run uses for weights, arithmetic and cache."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.architecture.spec import ModelSpec
from parallel.precision import FP8, Precision, cache_precision, precision


@dataclass(frozen=True)
class Formats:
    weights: Precision
    compute: Precision
    kv_cache: Precision

    @property
    def head(self) -> Precision:
        """The head and the embedding keep the arithmetic's format where weights are quantised."""
        return self.compute if self.weights == FP8 else self.weights

    def to_json(self) -> dict[str, str]:
        return {k: getattr(self, k).name for k in ("weights", "compute", "kv_cache")}


def choose_formats(
    spec: ModelSpec, weights: str = "stored", compute: str | None = None, cache: str | None = None
) -> Formats:
    """`stored` is the format that most of the checkpoint is in; arithmetic follows the weights
    and the cache follows the arithmetic, unless said otherwise."""
    held = spec.stored_precision if weights in ("stored", "auto") else precision(weights)
    used = held if compute is None else precision(compute)
    return Formats(held, used, used if cache is None else cache_precision(cache))
