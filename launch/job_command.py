"""The command that a job's nodes run: torchrun with a static rendezvous, and a launcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.entry import known_keys
from launch.job_resources import Resources
from launch.schema import (
    GenerateCommand,
    JobKind,
    MeasureCommand,
    ServeCommand,
    SubmitBackend,
)
from parallel.errors import ConfigError
from parallel.planner.plan import Plan

SCHEMAS: dict[JobKind, type] = {
    JobKind.serve: ServeCommand,
    JobKind.generate: GenerateCommand,
    JobKind.measure: MeasureCommand,
}
_DEGREES = ("tp", "pp", "dp")
_OF_TORCHRUN = "restarts"
_OF_BACKENDS = {
    **{backend.value: backend for backend in SubmitBackend},
    **dict.fromkeys(("folder", "follow"), SubmitBackend.slurm),
}
_SIGNALS = "SIGTERM,SIGHUP,SIGQUIT"


@dataclass(frozen=True)
class JobCommand:
    """`launcher` with `arguments` on each node, `ranks` there."""

    launcher: str
    arguments: tuple[str, ...]
    nodes: int
    ranks: int
    restarts: int

    def words(
        self, python: str, node_rank: str, address: str, port: str, root: Path | None = None
    ) -> list[str]:
        """The command; `node_rank`, `address` and `port` may be a shell's variables. It runs in
        the project's folder, or elsewhere when that is said (`root`) and on `PYTHONPATH`."""
        script = Path("launch", f"{self.launcher}.py")
        return [
            *(python, "-m", "launch.on_node"),
            *("--nnodes", str(self.nodes), "--nproc-per-node", str(self.ranks)),
            *("--node-rank", node_rank, "--master-addr", address, "--master-port", port),
            *("--max-restarts", str(self.restarts), "--signals-to-handle", _SIGNALS),
            *(str(script if root is None else root / script), *self.arguments),
        ]


def check_job_keys(job: JobKind, backend: SubmitBackend, overrides: Sequence[str]) -> None:
    """Raises `ConfigError` for a key that neither this job nor this backend reads."""
    for key in (override.lstrip("+").partition("=")[0] for override in overrides):
        jobs = [kind for kind, schema in SCHEMAS.items() if key in known_keys(schema)]
        if jobs and job not in jobs and key != _OF_TORCHRUN:
            theirs = " and ".join(f"job={kind.value}" for kind in jobs)
            raise ConfigError(f"{key} is a key of {theirs}, not of job={job.value}; leave it out")
        theirs = _OF_BACKENDS.get(key.partition(".")[0], backend).value
        if theirs != backend.value:
            raise ConfigError(
                f"{key} is a key of backend={theirs}, not of backend={backend.value}; leave it out"
            )


def job_command(
    job: JobKind, overrides: Sequence[str], plan: Plan, needed: Resources, restarts: int
) -> JobCommand:
    """Overrides that the job's launcher knows, with the plan's degrees; a server listens on all
    of its node's addresses unless told otherwise."""
    keys = known_keys(SCHEMAS[job])
    kept = [o.lstrip("+") for o in overrides]
    kept = [
        o
        for o in kept
        if o.partition("=")[0] in keys and o.partition("=")[0] not in (*_DEGREES, _OF_TORCHRUN)
    ]
    degrees = plan.layout.degrees
    chosen = str(degrees).split() if degrees.stage_tp is None else [f"dp={degrees.dp}"]
    if job is JobKind.serve and not any(o.startswith("host=") for o in kept):
        kept.append("host=0.0.0.0")
    return JobCommand(job.value, (*kept, *chosen), needed.nodes, needed.ranks, restarts)
