"""What the user wants of a run: something to make best, and limits to keep."""

from __future__ import annotations

from dataclasses import dataclass
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
                raise ConfigError(f"{key} is out of range; give a positive number")

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

    def missed(self, plan: Plan) -> tuple[str, str] | None:
        """Which limit a plan breaks, and the smallest change that would let it pass."""
        ttft, tpot = plan.ttft_seconds, plan.tpot_seconds
        if self.ttft_seconds is not None and ttft > self.ttft_seconds:
            return (
                f"time to first token {format_seconds(ttft)} is over slo.ttft_ms="
                f"{self.ttft_seconds * 1e3:g}",
                f"allow slo.ttft_ms={_above(ttft * 1e3)}",
            )
        if self.tpot_seconds is not None and tpot > self.tpot_seconds:
            return (
                f"time per output token {format_seconds(tpot)} is over slo.tpot_ms="
                f"{self.tpot_seconds * 1e3:g}",
                f"allow slo.tpot_ms={_above(tpot * 1e3)}",
            )
        devices = plan.layout.degrees.world_size
        if self.devices is not None and devices > self.devices:
            return (
                f"{devices} devices are over budget.gpus={self.devices}",
                f"allow budget.gpus={devices}",
            )
        return self._price(plan)

    def _price(self, plan: Plan) -> tuple[str, str] | None:
        if self.dollars_per_hour is None:
            return None
        price = plan.dollars_per_hour
        if price is None:
            return (
                "a device has no price, so budget.dollars_per_hour can't be kept",
                "give dollars_per_hour in its YAML",
            )
        if price > self.dollars_per_hour:
            return (
                f"{price:g} $ per hour are over budget.dollars_per_hour={self.dollars_per_hour:g}",
                f"allow budget.dollars_per_hour={_above(price)}",
            )
        return None


def _above(value: float) -> str:
    """Three digits, never below the value."""
    digits = f"{value:.3g}"
    return digits if float(digits) >= value else f"{value * 1.01:.3g}"
