"""Settings → model facts, cluster and plans."""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

from launch.chosen_links import chosen_links, lacking_here
from launch.entry import CONFIGS, under_torchrun
from launch.schema import GenerateCommand, MeasureCommand, PlanKeys, RunKeys, SubmitCommand
from parallel.architecture.checkpoint import load_spec
from parallel.architecture.spec import ModelSpec
from parallel.conversion.default_model import DEFAULT_MODEL
from parallel.conversion.resolve import is_default, resolve_config
from parallel.errors import LayoutError
from parallel.hardware.catalogue import depends_on_ranks, load_cluster
from parallel.hardware.facts import Cluster
from parallel.hardware.known import KnownDevice, known_devices
from parallel.hardware.probe import hosts_like
from parallel.layout.degrees import Degrees
from parallel.planner.formats import Formats, choose_formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.plan import Plan
from parallel.planner.search import Outcome, Planner, Wanted
from parallel.planner.targets import Targets

CLUSTERS = CONFIGS / "clusters"
LOCAL = "local"


def model_spec(settings: PlanKeys, directory: Path | None = None) -> ModelSpec:
    """Facts of the model asked for; the default model's config lies in the project."""
    if directory is not None:
        spec = load_spec(directory, weights=True)
    else:
        spec = load_spec(resolve_config(settings.model))
    return spec.renamed(DEFAULT_MODEL.name) if is_default(settings.model) else spec


def make_planner(settings: PlanKeys, spec: ModelSpec, world_size: int | None) -> Planner:
    asked = world_size or _product(settings)
    cluster = cache(partial(_cluster, settings, known_devices(CLUSTERS / "devices")))
    return Planner(
        spec,
        cluster(asked),
        choose_formats(
            spec,
            settings.precision.weights,
            settings.precision.compute,
            settings.precision.kv_cache,
        ),
        _limits(settings),
        Workload(**asdict(settings.workload)),
        Budget(settings.memory_gib, settings.memory_share),
        cluster if depends_on_ranks(settings.cluster, CLUSTERS) else None,
        _targets(settings),
        _other_formats(settings, spec),
    )


def _limits(settings: PlanKeys) -> EngineLimits:
    mapped = isinstance(settings, RunKeys) and settings.symmetric_memory
    return EngineLimits(
        **asdict(settings.engine), symmetric_memory=mapped, beside=_beside(settings)
    )


def _beside(settings: PlanKeys) -> str:
    """A plan that no run follows is a server's."""
    job = settings.job.value if isinstance(settings, SubmitCommand) else None
    if job == "measure" or isinstance(settings, MeasureCommand):
        return "nothing"
    return "batch" if job == "generate" or isinstance(settings, GenerateCommand) else "front"


def _cluster(settings: PlanKeys, known: dict[str, KnownDevice], ranks: int | None) -> Cluster:
    """With the links that the run would choose. Of hosts that torchrun has started this one is
    known, the others are taken to be like it."""
    hosts = host_count() if settings.cluster == LOCAL else 1
    here = ranks if ranks is None else ranks // hosts
    cluster = hosts_like(load_cluster(settings.cluster, CLUSTERS, here, known), hosts)
    runs = isinstance(settings, RunKeys) and not isinstance(settings, SubmitCommand)
    lacks = lacking_here() if runs or settings.cluster == LOCAL else ""
    asked = settings.collectives.value if isinstance(settings, RunKeys) else "auto"
    return chosen_links(cluster, _limits(settings), asked, lacks)


def host_count() -> int:
    """Hosts of this run, by torchrun; 1 without it."""
    return max(1, int(os.environ.get("GROUP_WORLD_SIZE", "1"))) if under_torchrun() else 1


def _targets(settings: PlanKeys) -> Targets:
    slo, budget = settings.slo, settings.budget
    return Targets(
        settings.objective.value,
        None if slo.ttft_ms is None else slo.ttft_ms / 1e3,
        None if slo.tpot_ms is None else slo.tpot_ms / 1e3,
        budget.gpus,
        budget.dollars_per_hour,
    )


def _other_formats(settings: PlanKeys, spec: ModelSpec) -> tuple[Formats, ...]:
    """`precision.weights=auto` weighs half precision beside what is stored."""
    if settings.precision.weights != "auto" or spec.stored_precision.bytes <= 2:
        return ()
    keys = settings.precision
    return (choose_formats(spec, "bf16", keys.compute, keys.kv_cache),)


def _product(settings: PlanKeys) -> int | None:
    tp, pp, dp = settings.tp, settings.pp, settings.dp
    if settings.stage_tp is not None:
        return _staged(settings).replica_size * (1 if dp is None else dp)
    if tp is None and pp is None and dp is None:
        return None
    tp, pp, dp = (1 if d is None else d for d in (tp, pp, dp))
    return Degrees(tp, pp, dp).world_size


def _staged(settings: PlanKeys) -> Degrees:
    """One replica whose stages have the degrees given; tp and pp may only say the same again."""
    stage_tp = tuple(settings.stage_tp or ())
    degrees = Degrees.of_stages(stage_tp)
    tp, pp = settings.tp, settings.pp
    return Degrees(degrees.tp if tp is None else tp, degrees.pp if pp is None else pp, 1, stage_tp)


def wanted(settings: PlanKeys, world_size: int | None) -> Wanted:
    """Null degrees are the planner's. Without torchrun, a given tp or pp makes the axes left out 1;
    under torchrun the product must be the number of ranks."""
    tp, pp, dp = settings.tp, settings.pp, settings.dp
    for axis, degree in (("tp", tp), ("pp", pp), ("dp", dp)):
        if degree is not None and degree < 1:
            raise LayoutError(f"{axis}={degree} is not a degree; give an integer of at least 1")
    stages = None if settings.stages is None else tuple(settings.stages)
    if settings.stage_tp is not None:
        replica = _staged(settings)
        if world_size is None:
            dp = dp or 1
        else:
            _check_replicas(replica, dp, world_size)
        return Wanted(
            replica.tp, replica.pp, dp, world_size, stages, settings.heads, replica.stage_tp
        )
    if world_size is None:
        if tp is not None or pp is not None or dp is not None:
            tp, pp, dp = tp or 1, pp or 1, dp or 1
    else:
        _check_world(tp, pp, dp, world_size)
        if tp is not None or pp is not None:
            tp, pp = _completed(tp, pp, dp, world_size)
    return Wanted(tp, pp, dp, world_size, stages, settings.heads)


def _completed(
    tp: int | None, pp: int | None, dp: int | None, world: int
) -> tuple[int | None, int | None]:
    """`+tp=2` on 2 ranks needs no more words: an axis left out is 1 where that fills the ranks."""
    if (tp or 1) * (pp or 1) * (dp or 1) == world:
        return tp or 1, pp or 1
    return tp, pp


def _check_world(tp: int | None, pp: int | None, dp: int | None, world: int) -> None:
    product = (tp or 1) * (pp or 1) * (dp or 1)
    free = None in (tp, pp, dp)
    if product == world or (free and product < world and world % product == 0):
        return
    given = " ".join(f"{a}={d}" for a, d in (("tp", tp), ("pp", pp), ("dp", dp)) if d is not None)
    raise LayoutError(
        f"{given} needs {product} ranks; torchrun started {world} "
        f"(WORLD_SIZE={os.environ.get('WORLD_SIZE')}): start it with --nproc-per-node {product}, "
        f"or choose degrees whose product is {world}"
    )


def _check_replicas(replica: Degrees, dp: int | None, world: int) -> None:
    size = replica.replica_size
    if world == size * (dp or max(1, world // size)):
        return
    raise LayoutError(
        f"{replica} takes {size} ranks for each replica"
        + (f", {size * dp} for dp={dp}" if dp else "")
        + f"; torchrun started {world}: start it with --nproc-per-node {size * (dp or 1)}, or "
        "choose a stage_tp whose sum divides the number of ranks"
    )


def search(settings: PlanKeys, spec: ModelSpec, world_size: int | None) -> Outcome:
    planner = make_planner(settings, spec, world_size)
    return planner.search(wanted(settings, world_size))


def decide(settings: PlanKeys, spec: ModelSpec, world_size: int | None) -> Plan:
    """The plan that the run will follow. Raises the reason when there is none."""
    return search(settings, spec, world_size).best()
