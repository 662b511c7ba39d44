"""Whether to shard, and how: a rule over what was predicted and measured.

1. The baseline is one rank and at least as good as the layout: don't shard.
2. A layout of no more ranks is predicted to be better by `WORTH_IT` or more: shard so instead, or,
   where it only has replicas, don't shard.
3. Else: shard as it was done.

Better is what the objective says. Measured figures go before predicted ones, except in 2, where
both are predictions: a layout that wasn't run is compared with what was foretold of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parallel.report.report import layout_name
from parallel.units import format_bytes, format_seconds

WORTH_IT = 0.05
"""Smaller gains are within the planner's error."""

SHARD, OTHERWISE, DONT = "shard so", "shard otherwise", "don't shard"


@dataclass(frozen=True)
class Candidate:
    """A layout that fits. `measured` says whether its times are."""

    tp: int
    pp: int
    dp: int
    fullest_bytes: int
    ttft_ms: float
    tpot_ms: float
    tokens_per_second: float
    dollars_per_million_tokens: float | None
    pareto: bool = False
    measured: bool = False
    stage_tp: tuple[int, ...] | None = None

    @classmethod
    def of(cls, plan: Mapping[str, Any]) -> Candidate:
        return cls(
            plan["tp"],
            plan["pp"],
            plan["dp"],
            max(rank["memory_bytes"]["total"] for rank in plan["ranks"]),
            plan["ttft_ms"],
            plan["tpot_ms"],
            plan["tokens_per_second"],
            plan["dollars_per_million_tokens"],
            plan["pareto"],
            stage_tp=plan["stage_tp"] and tuple(plan["stage_tp"]),
        )

    def timed(self, ttft: float | None, tpot: float | None, speed: float | None) -> Candidate:
        """With what was measured, where it was."""
        if ttft is None or tpot is None or speed is None:
            return self
        price = self.dollars_per_million_tokens
        if price is not None:
            price *= self.tokens_per_second / speed
        return replace(
            self,
            ttft_ms=ttft,
            tpot_ms=tpot,
            tokens_per_second=speed,
            dollars_per_million_tokens=price,
            measured=True,
        )

    @property
    def world_size(self) -> int:
        return self.dp * (sum(self.stage_tp) if self.stage_tp else self.tp * self.pp)

    @property
    def shards(self) -> bool:
        return self.tp * self.pp > 1

    @property
    def name(self) -> str:
        return layout_name(self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {
            "tp": self.tp,
            "pp": self.pp,
            "dp": self.dp,
            "stage_tp": self.stage_tp and list(self.stage_tp),
            "world_size": self.world_size,
            "fullest_rank_bytes": self.fullest_bytes,
            "ttft_ms": self.ttft_ms,
            "tpot_ms": self.tpot_ms,
            "tokens_per_second": self.tokens_per_second,
            "dollars_per_million_tokens": self.dollars_per_million_tokens,
            "pareto": self.pareto,
        }


@dataclass(frozen=True)
class Verdict:
    """`decision` is one of `SHARD`, `OTHERWISE` and `DONT`; `layout` what it comes to."""

    decision: str
    layout: str
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "decision": self.decision,
            "use": self.layout,
            "reasons": list(self.reasons),
        }


def decide(
    layout: Candidate,
    baseline: Candidate | None,
    candidates: Sequence[Candidate],
    objective: str = "throughput",
) -> Verdict:
    """`candidates` as predicted, `layout` and `baseline` as measured where they were."""
    if not layout.shards:
        return _unsharded(layout, candidates, objective)
    if baseline is not None and not baseline.shards and baseline.name != layout.name:
        gain = _gain(baseline, layout, objective)
        if gain >= 0:
            return Verdict(
                DONT,
                baseline.name,
                (
                    f"{baseline.name} fits in its budget and is {_faster(gain)}: "
                    f"{_figures(baseline)}, against {_figures(layout)}",
                ),
            )
    other = _better(layout, baseline, candidates, objective)
    if other is not None:
        found, gain = other
        return Verdict(
            OTHERWISE if found.shards else DONT,
            found.name,
            (
                f"{found.name} is predicted to be {_faster(gain)} on no more ranks: "
                f"{_figures(found)}",
            ),
        )
    return Verdict(SHARD, layout.name, tuple(_for_it(layout, baseline)))


def _unsharded(layout: Candidate, candidates: Sequence[Candidate], objective: str) -> Verdict:
    other = _better(layout, None, candidates, objective)
    if other is None:
        reason = f"no layout of {layout.world_size} or fewer ranks is predicted to be "
        return Verdict(DONT, layout.name, (f"{reason}{WORTH_IT:.0%} better",))
    found, gain = other
    reason = f"{found.name} is predicted to be {_faster(gain)}: {_figures(found)}"
    return Verdict(OTHERWISE if found.shards else DONT, found.name, (reason,))


def _for_it(layout: Candidate, baseline: Candidate | None) -> list[str]:
    if baseline is None or baseline.name == layout.name:
        return [f"no layout of so many ranks is predicted to be {WORTH_IT:.0%} better"]
    words = []
    speed = layout.tokens_per_second / baseline.tokens_per_second
    how = "measured" if baseline.measured and layout.measured else "predicted"
    words.append(f"{speed:.2f} times the tokens per second of {baseline.name} ({how})")
    saved = baseline.fullest_bytes - layout.fullest_bytes
    if saved > 0:
        words.append(f"{format_bytes(saved)} less on the fullest rank (predicted)")
    return words


def _better(
    layout: Candidate, baseline: Candidate | None, candidates: Sequence[Candidate], objective: str
) -> tuple[Candidate, float] | None:
    """The best other layout of no more ranks, if it is enough better. The baseline, where it was
    run, has been looked at already."""
    run = {layout.name} | ({baseline.name} if baseline is not None and baseline.measured else set())
    foretold = next((c for c in candidates if c.name == layout.name), layout)
    others = [
        (c, _gain(c, foretold, objective))
        for c in candidates
        if c.name not in run and c.world_size <= layout.world_size
    ]
    best = max(others, key=lambda pair: pair[1], default=None)
    return best if best is not None and best[1] >= WORTH_IT else None


def _gain(one: Candidate, other: Candidate, objective: str) -> float:
    """How much better `one` is than `other`, as a share: 0.1 is a tenth faster, or cheaper."""
    return _merit(one, objective) / _merit(other, objective) - 1


def _merit(candidate: Candidate, objective: str) -> float:
    price = candidate.dollars_per_million_tokens
    if objective == "latency":
        return 1 / candidate.tpot_ms
    if objective == "fewest_gpus":
        return 1 / candidate.world_size
    if objective == "cost":
        ranks_seconds = candidate.world_size / candidate.tokens_per_second
        return 1 / (ranks_seconds if price is None else price)
    return candidate.tokens_per_second


def _faster(gain: float) -> str:
    return f"{gain:.0%} better" if gain >= 0.005 else "as good"


def _figures(candidate: Candidate) -> str:
    how = "measured" if candidate.measured else "predicted"
    return (
        f"{candidate.tokens_per_second:.1f} tokens/s, "
        f"{format_seconds(candidate.tpot_ms / 1e3)} per token ({how})"
    )
