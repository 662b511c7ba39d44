"""Where a step's time went, from what the ranks of a measured run counted.

Each rank ran its steps twice: in the engine, and once more with communication taken away, which
leaves its own work. What a step took beyond the work of its path is what communication cost.

A stage is as slow as its slowest rank; a step with `b` batches in flight lasts as long as its
path through all stages, or as the slowest stage needs for all `b`:

    path = max(b · slowest stage, Σ stages)      communication = step - path

The leader's host work (scheduling, messages, answers) belongs to the first stage: what a step took
beyond its run, or, where steps overlap, the leader's time beside runs and waiting, shared out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True)
class StepCosts:
    """Seconds of a mean step: `step` is the sum of the others.

    `compute`: the ranks' mean own work, stage after stage; `imbalance`: what the slowest rank of
    each stage takes beyond that mean; `host`: the engine's work between steps; `pipeline`:
    waiting for batches of others; `communication`: the rest, moving and waiting for it."""

    step: float
    compute: float
    imbalance: float
    host: float
    pipeline: float
    communication: float

    @property
    def without_communication(self) -> float:
        """The step with communication, and the imbalance that it makes others wait for, gone."""
        return self.step - self.communication - self.imbalance


def step_costs(entries: Sequence[Json], phase: str) -> StepCosts | None:
    """The mean over the replicas' steps of a phase; None when there was none.

    An entry is what one rank counted: `coordinates`; `run` and `muted`, its steps with and without
    communication ({phase: {`steps`, `seconds`}}); on leaders also `leader`: `wall_seconds` in all,
    `run_seconds` of it in the worker, `reply_seconds` waiting for the last stage, and `phases`
    ({phase: {`steps`, `seconds`}}, as the engine's clock saw them)."""
    found: list[tuple[int, StepCosts]] = []
    for dp in sorted({entry["coordinates"]["dp"] for entry in entries}):
        replica = [entry for entry in entries if entry["coordinates"]["dp"] == dp]
        leader = next(entry["leader"] for entry in replica if entry["leader"] is not None)
        if leader["phases"].get(phase, {}).get("steps"):
            found.append((leader["phases"][phase]["steps"], _replica(replica, leader, phase)))
    steps = sum(count for count, _ in found)
    if not steps:
        return None
    return StepCosts(
        *(sum(n * getattr(c, f.name) for n, c in found) / steps for f in fields(StepCosts))
    )


def _replica(replica: Sequence[Json], leader: Json, phase: str) -> StepCosts:
    stages: dict[int, list[float]] = {}
    # A rank alone has nothing to take away: its run is its own work.
    kind = "muted" if len(replica) > 1 else "run"
    for entry in replica:
        alone = entry[kind][phase]
        stages.setdefault(entry["coordinates"]["pp"], []).append(alone["seconds"] / alone["steps"])
    slowest = [max(times) for _, times in sorted(stages.items())]
    compute = sum(sum(times) / len(times) for times in stages.values())
    counted = leader["phases"].values()
    in_flight = sum(p["seconds"] for p in counted) / leader["wall_seconds"]
    here = leader["phases"][phase]
    step = here["seconds"] / here["steps"]
    if len(stages) == 1 and in_flight <= 1:
        led = next(entry["run"][phase] for entry in replica if entry["leader"] is not None)
        host = step - led["seconds"] / led["steps"]
    else:
        host = leader["wall_seconds"] - leader["run_seconds"] - leader["reply_seconds"]
        host /= sum(p["steps"] for p in counted)
    busy = [slowest[0] + max(0.0, host), *slowest[1:]]
    path = max(in_flight * max(busy), sum(busy))
    return StepCosts(
        step=step,
        compute=compute,
        imbalance=sum(slowest) - compute,
        host=max(0.0, host),
        pipeline=path - sum(busy),
        communication=step - path,
    )


def steps_run(costs: Json) -> str:
    """How many steps of a phase there were, and how large they were in the mean."""
    count = costs["steps"]
    return f"{count} step{'s' * (count != 1)} of {costs['tokens_per_step']:.1f} tokens"
