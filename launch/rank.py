"""One rank of a run, from its environment to its exit: what serve and generate have in common."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from launch.entry import is_first_rank
from launch.failing import ending_at_failure
from launch.provenance import provenance
from launch.rank_log import rank_log
from launch.run_folder import REPORT, RunFolder
from launch.running import (
    capturing_bar,
    loading_bar,
    local_threads,
    rank_numbers,
    show_plan,
    show_report,
)
from launch.schema import RunKeys
from launch.signals import on_termination
from parallel.collectives.lifeline import end_process
from parallel.collectives.mesh import MeshOptions
from parallel.devices.select import select_device
from parallel.errors import RunError
from parallel.planner.memory import weight_bytes
from parallel.planner.plan import Plan
from parallel.runtime.job import RankJob
from parallel.runtime.worker import Worker

Json = dict[str, Any]
RouterAt = tuple[tuple[str, int], bytes]


class Host:
    """What rank 0 adds to its rank: whoever takes requests in and hands tokens out.

    `router` says where the leaders connect; `loaded` is called when all ranks are ready to serve,
    with what they measured so far, `report` with the report of the whole run."""

    def router(self) -> RouterAt:
        raise RunError("this host has no router")

    def loaded(self, report: Json) -> None:
        return

    def beside_bytes(self) -> int:
        """Of processes that it has started, in the host's memory."""
        return 0

    def report(self, report: Json, file: str | None) -> None:
        show_report(report, file)

    def terminate(self, signal_name: str) -> None:
        """A signal asks for the end. Whoever waits for the answers gets none."""
        leave(f"stopped by {signal_name}; nothing was written")

    def close(self) -> None:
        return


def leave(message: str) -> None:
    """Ends this process. A dead rank makes torchrun end the others: the lifeline may have something
    to say first."""
    time.sleep(1.0)
    end_process(message)


Work = Callable[[RankJob, Host | None], None]


def run_rank(
    settings: RunKeys,
    directory: Path,
    plan: Plan,
    make_host: Callable[[], Host],
    work: Work | None = None,
    make_worker: type[Worker] = Worker,
    folder: RunFolder | None = None,
) -> int:
    """`make_host` is called on rank 0 alone, before anything is loaded; `work` on every rank when
    all are loaded and warm (default: serve until told to stop, and report). What is printed goes
    into `folder` too."""
    host: Host | None = None
    joined = Event()

    def terminate(number: signal.Signals) -> None:
        # Other ranks leave with rank 0: its lifeline tells them, once they have one.
        if host is not None:
            host.terminate(number.name)
        elif not joined.is_set():
            end_process("")

    on_termination(terminate)
    folder = folder or RunFolder(settings)
    try:
        with rank_log() as log, ending_at_failure():
            if folder.decided_here:
                log.open(folder.path())
            else:
                log.keep()
            if is_first_rank():
                show_plan(plan)
                host = make_host()
            job = _start(settings, plan, host, joined, make_worker)
            log.open(folder.agree(job.mesh.exchange))
            log.stamp(f"loaded and warm on {job.device.name}")
            if work is None:
                _serve(settings, directory, job, host, folder)
            else:
                work(job, host)
            if settings.trace is not None:
                _write_trace(job, settings.trace)
            job.close()
    finally:
        if host is not None:
            host.close()
    return 0


def _start(
    settings: RunKeys, plan: Plan, host: Host | None, joined: Event, make_worker: type[Worker]
) -> RankJob:
    """A rank that is loaded and warm. `joined` is set as soon as the lifeline watches over it."""
    rank, local_rank = rank_numbers()
    native = plan.limits.native(plan.cluster.device(rank).type)
    compiled = plan.limits.kernels != "portable"
    kind, threads = settings.device.value, local_threads(settings)
    device = select_device(kind, local_rank, threads, native, compiled)
    device.activate()
    options = MeshOptions(
        collectives=settings.collectives.value,
        timeout_seconds=settings.collective_timeout_seconds,
        batches=plan.batches,
        symmetric_memory=settings.symmetric_memory,
    )
    traced = 0 if settings.trace is None else settings.trace_steps
    beside = 0 if host is None else host.beside_bytes()
    job = RankJob(plan, rank, device, options, make_worker, traced, beside)
    joined.set()
    _same_plan(job.mesh.exchange.collect("plan", _digest(plan)))
    if host is not None:
        for line in job.mesh.describe():
            print(line, flush=True)
    with loading_bar(weight_bytes(plan.layout, rank, plan.formats)) as advance:
        job.load(advance)
    with capturing_bar(job.worker.graphs.to_capture) as captured:
        job.warm_up(captured)
    if host is not None:
        for line in job.worker.describe():
            print(line, flush=True)
    return job


def _serve(
    settings: RunKeys, directory: Path, job: RankJob, host: Host | None, folder: RunFolder
) -> None:
    exchange = job.mesh.exchange
    if host is not None:
        (name, port), key = host.router()
        exchange.put("router", [name, port, key.hex()])
    name, port, key_text = exchange.get("router")
    loaded = job.report("loaded")
    if host is not None and loaded is not None:
        host.loaded(loaded)
    job.serve((name, port), bytes.fromhex(key_text), _facts(job.plan, settings, directory))
    report = job.report("final")
    if host is not None and report is not None:
        whole = {**report, "provenance": provenance(settings, job.plan.cluster).to_json()}
        folder.write(REPORT, whole)
        host.report(whole, settings.report)


def _write_trace(job: RankJob, file: str) -> None:
    trace = job.trace()
    if trace is not None:
        Path(file).write_text(json.dumps(trace) + "\n")


def _facts(plan: Plan, settings: RunKeys, directory: Path) -> Json:
    spec = plan.layout.spec
    return {
        "plan": plan.to_json(),
        "model": settings.model or spec.name,
        "context_tokens": plan.context_tokens,
        "vocabulary": spec.vocabulary,
        "eos_token_ids": list(spec.eos_token_ids),
        "most_sequences": plan.limits.most_sequences,
        "block_tokens": plan.limits.block_tokens,
        "prefix_blocks": plan.blocks if plan.limits.prefix_cache else 0,
    }


def _digest(plan: Plan) -> str:
    return hashlib.sha256(json.dumps(plan.to_json(), sort_keys=True).encode()).hexdigest()


def _same_plan(digests: list[str]) -> None:
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise RunError(
            f"rank(s) {', '.join(map(str, others))} made another plan than rank 0: the hosts or "
            "their settings differ; give the same command everywhere, and cluster=FILE.yaml and "
            "memory_gib where the hosts differ"
        )
