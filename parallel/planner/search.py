"""Every legal layout of a model on a cluster, planned, ranked, and the rest with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

from parallel.architecture.spec import ModelSpec
from parallel.errors import CapacityError, LayoutError, UserError
from parallel.hardware.facts import Cluster
from parallel.layout.degrees import Degrees
from parallel.layout.heads import head_map
from parallel.layout.layout import Layout
from parallel.planner.formats import Formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.mixed import MixedLayout, mixed_layouts
from parallel.planner.plan import Plan, make_plan
from parallel.planner.stage_problem import NoStaging
from parallel.planner.targets import OBJECTIVES, Targets
from parallel.planner.unlike import Cutting
from parallel.precision import precision
from parallel.units import GIB

_FEW_HUNDREDTHS, _MOST_SHARE = 3, 0.95
"""A little more memory is suggested before more devices, as long as some stays free."""


@dataclass(frozen=True)
class Wanted:
    """What the user fixed; None is the planner's to choose. `world_size` is the number of ranks
    that were started, if they were."""

    tp: int | None = None
    pp: int | None = None
    dp: int | None = None
    world_size: int | None = None
    stages: tuple[int, ...] | None = None
    heads: str = "auto"
    stage_tp: tuple[int, ...] | None = None
    """Given where stages differ in tp: `tp` and `pp` are then its largest and its length."""

    @property
    def decided(self) -> bool:
        known = self.dp is not None or self.world_size is not None
        return None not in (self.tp, self.pp) and known


@dataclass(frozen=True)
class Rejected:
    degrees: Degrees
    reason: str
    suggestion: str
    formats: Formats
    excess: float | None = None
    """Of a layout that fits but breaks a limit: how far it is from it, as a ratio."""

    def to_json(self) -> dict[str, Any]:
        d = self.degrees
        return {
            "tp": d.tp,
            "pp": d.pp,
            "dp": d.dp,
            "precision": self.formats.to_json(),
            "reason": self.reason,
            "suggestion": self.suggestion,
            "stage_tp": d.stage_tp and list(d.stage_tp),
        }


@dataclass(frozen=True)
class Outcome:
    """`plans` best first by the objective; `choice` says why the first one is."""

    plans: tuple[Plan, ...]
    rejected: tuple[Rejected, ...]
    choice: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "choice": self.choice,
            "plans": [p.to_json() for p in self.plans],
            "rejected": [r.to_json() for r in self.rejected],
        }

    def best(self) -> Plan:
        """Raises the error of the first rejection when there is no plan."""
        if self.plans:
            return self.plans[0].marked(choice=self.choice)
        if not self.rejected:
            raise LayoutError(
                "no tp, pp and dp that the model can take have the product asked for; start "
                "another number of ranks, or leave an axis out"
            )
        first = self.rejected[0]
        missed = [r for r in self.rejected if r.excess is not None]
        if missed:
            first = min(missed, key=lambda r: r.excess or 0.0)
            many = len(missed)
            who = f"{many} layouts fit, all break" if many > 1 else "one layout fits, it breaks"
            raise CapacityError(
                f"{who} the limits; nearest is {first.degrees}: {first.reason}; {first.suggestion}"
            )
        raise CapacityError(f"{first.reason}; {first.suggestion}")


@dataclass(frozen=True)
class Planner:
    spec: ModelSpec
    cluster: Cluster
    formats: Formats
    limits: EngineLimits
    workload: Workload
    budget: Budget
    resized: Callable[[int], Cluster] | None = None
    """The cluster as so many ranks see it, where that differs: ranks share the cores of a host."""
    targets: Targets = field(default_factory=Targets)
    other_formats: tuple[Formats, ...] = ()
    """Formats to weigh beside the first ones."""
    _tried: dict[tuple[Degrees, str], bool] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    """Layouts that were suggested for others: whether they work."""

    def plan(self, degrees: Degrees, wanted: Wanted) -> Plan:
        """Of one layout. Where whole KV groups and even heads differ, the faster of both."""
        if wanted.heads != "auto" or not self._heads_differ(degrees):
            return self._plan(degrees, wanted)
        plans, errors = [], []
        for heads in ("groups", "replicate"):
            try:
                plans.append(self._plan(degrees, replace(wanted, heads=heads)))
            except UserError as error:
                errors.append(error)
        if not plans:
            raise errors[0]
        return self._best(plans)

    def _heads_differ(self, degrees: Degrees) -> bool:
        """Whether some layer's heads can be shared in two ways (`padded` is never faster)."""
        kinds = {(b.attention.heads, b.attention.kv_heads) for b in self.spec.blocks}
        return any(
            head_map(heads, kv, tp, "groups") != head_map(heads, kv, tp, "replicate")
            for heads, kv in kinds
            if degrees.tp <= kv
            for tp in degrees.stage_tp or (degrees.tp,)
        )

    def _plan(self, degrees: Degrees, wanted: Wanted) -> Plan:
        """Where stages are on unlike devices, cut by their times and memories."""
        cluster = self.cluster if self.resized is None else self.resized(degrees.world_size)
        facts = (cluster, self.formats, self.limits, self.workload, self.budget)
        layout = Layout.make(self.spec, degrees, wanted.stages, wanted.heads)
        cluster.device(degrees.world_size - 1)
        if wanted.stages is not None:
            return make_plan(layout, *facts)
        latency = self.targets.objective == "latency"
        cuts = Cutting(self.spec, *facts, wanted.heads).unlike_cuts(degrees, latency)
        layouts = [Layout.make(self.spec, degrees, cut, wanted.heads) for cut in cuts] or [layout]
        return self._best([make_plan(each, *facts) for each in layouts])

    def _best(self, plans: Sequence[Plan]) -> Plan:
        """One alone isn't compared: that would simulate its load."""
        return plans[0] if len(plans) == 1 else min(plans, key=self.targets.order)

    def search(self, wanted: Wanted) -> Outcome:
        plans: list[Plan] = []
        rejected: list[Rejected] = []
        for formats in (self.formats, *self.other_formats):
            replace(self, formats=formats)._search(wanted, plans, rejected)
        plans.sort(key=self.targets.order)
        return Outcome(_mark_pareto(plans), tuple(rejected), self._choice(plans, wanted))

    def _search(self, wanted: Wanted, plans: list[Plan], rejected: list[Rejected]) -> None:
        mixed = self._mixed(wanted)
        for degrees, wish in self._wishes(wanted, mixed):
            try:
                plan = self.plan(degrees, wish)
            except UserError as error:
                suggestion = self._suggest(degrees, error, wanted)
                rejected.append(Rejected(degrees, str(error), suggestion, self.formats))
                continue
            missed = self.targets.missed(plan)
            if missed is None:
                plans.append(plan)
            else:
                facts = (missed.reason, missed.change, self.formats, missed.excess)
                rejected.append(Rejected(degrees, *facts))
        rejected.extend(self._out_of_order(mixed))

    def _choice(self, plans: Sequence[Plan], wanted: Wanted) -> str:
        """Nothing where the user left nothing to choose."""
        if not plans or wanted.decided:
            return ""
        goal, best = OBJECTIVES[self.targets.objective], plans[0]
        of = "" if wanted.world_size is None else f" of {wanted.world_size} ranks"
        if len(plans) == 1:
            return f"{best.layout.degrees}: the only layout{of} that is legal and fits"
        second = plans[1]
        return (
            f"{best.layout.degrees}: {goal} of {len(plans)} layouts{of}, "
            f"{self.targets.figure(best)}; next is {second.layout.degrees} with "
            f"{self.targets.figure(second)}"
        )

    def _wishes(
        self, wanted: Wanted, mixed: Sequence[MixedLayout]
    ) -> Iterator[tuple[Degrees, Wanted]]:
        """Every layout to plan; on unlike devices also stages with a tp of their own."""
        seen = set()
        for degrees in self._candidates(wanted):
            seen.add(degrees)
            yield degrees, wanted
        for layout in mixed:
            if layout.in_order and layout.degrees not in seen:
                yield layout.degrees, replace(wanted, stages=layout.stages)

    def _mixed(self, wanted: Wanted) -> list[MixedLayout]:
        """What the search over stages, their devices and their tp finds for unlike devices, where
        the user left all of that open."""
        fixed = (wanted.tp, wanted.pp, wanted.dp, wanted.stages)
        if any(f is not None for f in fixed) or not self._unlike:
            return []
        facts = (self.cluster, self.formats, self.limits, self.workload, self.budget)
        try:
            found = mixed_layouts(Cutting(self.spec, *facts, wanted.heads))
        except NoStaging:
            return []
        return [m for m in found if wanted.world_size in (None, m.degrees.world_size)]

    def _out_of_order(self, mixed: Sequence[MixedLayout]) -> Iterator[Rejected]:
        for layout in mixed:
            if not layout.in_order:
                order = ", ".join(map(str, layout.devices))
                stages = ",".join(map(str, layout.stages))
                yield Rejected(
                    layout.degrees,
                    f"its ranks would be the devices {order} of the cluster, in this order",
                    f"list the cluster's devices so, then use {layout.degrees} stages=[{stages}]",
                    self.formats,
                )

    @property
    def _unlike(self) -> bool:
        return len({d.type.name for d in self.cluster.devices}) > 1

    def _candidates(self, wanted: Wanted) -> Iterator[Degrees]:
        devices = self.cluster.device_count
        heads = min(b.attention.heads for b in self.spec.blocks)
        most = max(devices, wanted.world_size or 0)

        def choices(fixed: int | None, bound: int) -> Sequence[int]:
            return (fixed,) if fixed is not None else range(1, max(1, bound) + 1)

        for tp in choices(wanted.tp, min(heads, most)):
            for pp in choices(wanted.pp, min(self.spec.layers, most // max(tp, 1))):
                replica = Degrees(tp, pp, 1, wanted.stage_tp).replica_size
                for dp in choices(wanted.dp, most // replica):
                    degrees = Degrees(tp, pp, dp, wanted.stage_tp)
                    if wanted.world_size in (None, degrees.world_size):
                        yield degrees

    def _suggest(self, degrees: Degrees, error: UserError, wanted: Wanted) -> str:
        """The smallest change that was tried and found to work."""
        if not isinstance(error, CapacityError):
            return self._nearest(degrees, wanted)
        if share := self._larger_share(degrees, wanted):
            return f"use memory_share={share:.2f}"
        free = Wanted(heads=wanted.heads)
        tp, pp = degrees.tp, degrees.pp
        nearby = [Degrees(tp, more) for more in (pp + 1, pp * 2, pp * 4, pp * 8)]
        nearby += [Degrees(more, pp) for more in (tp + 1, tp * 2, tp * 4, tp * 8)]
        nearby += [Degrees(tp, pp)] if degrees.stage_tp else []
        nearby.sort(key=lambda d: d.world_size)
        for other in nearby:
            tried = (other, free.heads)
            if tried not in self._tried:
                self._tried[tried] = self._works(other, free)
            if self._tried[tried]:
                return f"use {other}"
        if self.formats.weights.bytes > 2:
            half = precision("bf16")
            smaller = replace(self, formats=Formats(half, half, half))
            if smaller._works(degrees, wanted):
                return "use precision.weights=bf16"
        for tokens in (128, 32):
            if self.limits.step_tokens > tokens:
                limits = replace(self.limits, step_tokens=tokens)
                if replace(self, limits=limits)._works(degrees, wanted):
                    return f"use engine.step_tokens={tokens}"
        return self._more_memory(degrees, wanted)

    def _larger_share(self, degrees: Degrees, wanted: Wanted) -> float | None:
        """Of the device, where a few hundredths more are enough; what was given in GiB is meant."""
        if self.budget.memory_gib is not None:
            return None
        shares = [round(self.budget.share + n / 100, 2) for n in range(1, _FEW_HUNDREDTHS + 1)]
        for share in (s for s in shares if s <= _MOST_SHARE):
            if replace(self, budget=Budget(share=share))._works(degrees, wanted):
                return share
        return None

    def _nearest(self, degrees: Degrees, wanted: Wanted) -> str:
        """The legal layout that differs least from an illegal one."""
        heads = min(b.attention.heads for b in self.spec.blocks)
        stages = range(min(degrees.pp, self.spec.layers))
        nearest = Degrees.of_stages([min(degrees.tp_of(pp), heads) for pp in stages], degrees.dp)
        if nearest != degrees and self._works(nearest, Wanted()):
            return f"use {nearest}"
        if self._works(degrees, Wanted()):
            return "leave heads and stages to the planner"
        return f"use at most {self.cluster.device_count} ranks, or a larger cluster"

    def _works(self, degrees: Degrees, wanted: Wanted) -> bool:
        try:
            self.plan(degrees, wanted)
        except UserError:
            return False
        return True

    def _more_memory(self, degrees: Degrees, wanted: Wanted) -> str:
        low, high = 0.0, 1024.0
        for _ in range(24):
            middle = (low + high) / 2
            if replace(self, budget=Budget(middle))._works(degrees, wanted):
                high = middle
            else:
                low = middle
        if high >= 1024.0:
            return "use a cluster with more memory per device"
        gib = _hundredths(high)
        used = self.cluster.devices[: degrees.world_size]
        have = min(d.type.memory_bytes for d in used) / GIB
        if gib <= have:
            return f"raise the budget to memory_gib={gib:.2f}"
        fixed = self.budget.memory_gib is not None
        least = gib if fixed else _hundredths(high / self.budget.share)
        return (
            f"use devices with at least {least:.2f} GiB each (the smallest here has {have:.2f})"
            + (f" and memory_gib={gib:.2f}" if fixed else "")
        )


def _hundredths(gib: float) -> float:
    return ceil(gib * 100) / 100


def _mark_pareto(plans: list[Plan]) -> tuple[Plan, ...]:
    """Not beaten in time per token, tokens per second, ranks and cost all together."""

    def point(p: Plan) -> tuple[float, ...]:
        cost = p.dollars_per_million_tokens
        return (
            p.tpot_seconds,
            -p.tokens_per_second,
            float(p.layout.degrees.world_size),
            cost if cost is not None else 0.0,
        )

    points = [point(p) for p in plans]

    def beaten(i: int) -> bool:
        return any(
            all(a <= b for a, b in zip(q, points[i], strict=True)) and q != points[i]
            for q in points
        )

    return tuple(p.marked(pareto=not beaten(i)) for i, p in enumerate(plans))
