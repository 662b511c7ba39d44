"""What the user wants of a run: something to make best, and limits to keep."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from math import inf

from parallel.errors import ConfigError, did_you_mean
from parallel.planner.plan import Plan
from parallel.units import format_seconds

OBJECTIVES = {
    "throughput": "most tokens per second",
    "latency": "least time per output token",
    "cost": "least cost per token",
    "fewest_gpus": "fewest devices",
}


@dataclass(frozen=True)
class Targets:
    """`objective` is one of `OBJECTIVES`; None leaves a limit out."""

    objective: str = "throughput"
    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    devices: int | None = None
    dollars_per_hour: float | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ConfigError(
                f"objective={self.objective} is unknown{did_you_mean(self.objective, OBJECTIVES)}; "
                f"known: {', '.join(OBJECTIVES)}"
            )
        limits = {
            "slo.ttft_ms": self.ttft_seconds,
            "slo.tpot_ms": self.tpot_seconds,
            "budget.gpus": self.devices,
            "budget.dollars_per_hour": self.dollars_per_hour,
        }
        for key, value in limits.items():
            if value is not None and not 0 < value < inf:
                given = value * 1e3 if key.endswith("_ms") else value
                raise ConfigError(f"{key}={given:g} is out of range; give a positive number")

    def order(self, plan: Plan) -> tuple[float, ...]:
        """Sorts the best plan first; what the objective leaves open goes to speed, then to fewer
        devices."""
        speed, devices = -plan.tokens_per_second, float(plan.layout.degrees.world_size)
        if self.objective == "latency":
            return (plan.tpot_seconds, plan.ttft_seconds, devices)
        if self.objective == "cost":
            return (plan.dollars_per_million_tokens or devices / -speed, speed, devices)
        if self.objective == "fewest_gpus":
            return (devices, speed)
        return (speed, devices)

    def figure(self, plan: Plan) -> str:
        """What the objective came to."""
        if self.objective == "latency":
            return f"{format_seconds(plan.tpot_seconds)} per output token"
        if self.objective == "cost" and plan.dollars_per_million_tokens is not None:
            return f"{plan.dollars_per_million_tokens:.3f} $ per million tokens"
        if self.objective == "fewest_gpus":
            return f"{plan.layout.degrees.world_size} ranks"
        return f"{plan.tokens_per_second:.1f} tokens/s"

    def missed(self, plan: Plan) -> Missed | None:
        """Which limits a plan breaks, and the smallest change that would let it pass."""
        found = [
            _over(key, said, value, limit, scale)
            for key, said, value, limit, scale in self._limits(plan)
            if value > limit
        ]
        unknown = self.dollars_per_hour is not None and plan.dollars_per_hour is None
        if unknown:
            found.append(_NO_PRICE)
        if not found:
            return None
        asked = " ".join(m.change for m in found if m is not _NO_PRICE)
        changes = [f"allow {asked}"] if asked else []
        changes += [_NO_PRICE.change] if unknown else []
        reasons = " and ".join(m.reason for m in found)
        return Missed(reasons, "; ".join(changes), max(m.excess for m in found))

    def _limits(self, plan: Plan) -> list[tuple[str, str, float, float, float]]:
        """Those that were given: key, what is said of the plan, its value, the limit, and how many
        of the key's units make one of theirs."""
        devices = plan.layout.degrees.world_size
        price = plan.dollars_per_hour or 0.0
        ttft, tpot = plan.ttft_seconds, plan.tpot_seconds
        first, following = (f"{format_seconds(s)} is" for s in (ttft, tpot))
        limits = (
            ("slo.ttft_ms", f"time to first token {first}", ttft, self.ttft_seconds, 1e3),
            ("slo.tpot_ms", f"time per output token {following}", tpot, self.tpot_seconds, 1e3),
            ("budget.gpus", f"{devices} devices are", devices, self.devices, 1.0),
            (
                "budget.dollars_per_hour",
                f"{price:g} $ per hour are",
                price,
                self.dollars_per_hour,
                1.0,
            ),
        )
        return [(k, said, v, limit, scale) for k, said, v, limit, scale in limits if limit]


@dataclass(frozen=True)
class Missed:
    """`change` is of what is allowed; `excess` how far the plan is from it, as a ratio."""

    reason: str
    change: str
    excess: float


_NO_PRICE = Missed(
    "a device has no price, so budget.dollars_per_hour can't be kept",
    "give dollars_per_hour in its YAML",
    inf,
)


def _over(key: str, said: str, value: float, limit: float, scale: float) -> Missed:
    reason = f"{said} over {key}={limit * scale:g}"
    return Missed(reason, f"{key}={_above(value * scale)}", value / limit)


def _above(value: float) -> str:
    """Three digits, never below the value; whole numbers as they are."""
    if value == int(value):
        return str(int(value))
    digits = Decimal(f"{value:.3g}")
    if digits < Decimal(value):
        digits += Decimal(1).scaleb(digits.adjusted() - 2)
    return f"{digits:f}"
