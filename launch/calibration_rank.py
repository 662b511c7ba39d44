"""One rank of a calibration, from its environment to its exit; rank 0 writes the file."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from launch.entry import EXIT_DONE, is_first_rank
from launch.failing import ending_at_failure
from launch.planning import CLUSTERS
from launch.provenance import provenance
from launch.rank_log import rank_log
from launch.run_folder import RunFolder
from launch.running import local_threads, rank_numbers
from launch.schema import CalibrateCommand, DeviceKind
from launch.signals import on_termination
from parallel.calibration.document import measured_document, write_document
from parallel.calibration.machine import describe_host, fit_cluster
from parallel.collectives.lifeline import end_process
from parallel.collectives.mesh import MeshOptions
from parallel.devices.select import select_device
from parallel.hardware.known import known_devices
from parallel.hardware.probe import probe_local
from parallel.runtime.calibration import measure_rank

_MUCH_SPREAD = 0.5


def run_calibration(settings: CalibrateCommand, output: Path) -> int:
    on_termination(_terminate)
    folder = RunFolder(settings)
    with rank_log() as log, ending_at_failure():
        # Under torchrun the others never hear of rank 0's folder: they measure and leave.
        log.open(folder.path() if folder.decided_here else None)
        _run(settings, output)
    return EXIT_DONE


def _terminate(number: signal.Signals) -> None:
    end_process(f"stopped by {number.name}; nothing was written" if is_first_rank() else "")


def _run(settings: CalibrateCommand, output: Path) -> None:
    began = time.monotonic()
    rank, local_rank = rank_numbers()
    ranks, local_ranks = (int(os.environ[k]) for k in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    seen = dict(os.environ)
    if settings.device is DeviceKind.cpu:
        seen["CUDA_VISIBLE_DEVICES"] = ""
    machine = probe_local(local_ranks, known=known_devices(CLUSTERS / "devices"), environment=seen)
    native = machine.device(local_rank).type.native_kernels
    device = select_device(settings.device.value, local_rank, local_threads(settings), native)
    device.activate()
    options = MeshOptions(settings.collectives.value, settings.collective_timeout_seconds)
    with _progress(ranks) as advance:
        measures = measure_rank(
            machine, ranks, rank, device, options, settings.budget_seconds, advance
        )
    if rank != 0:
        return
    cluster, errors = fit_cluster(output.stem, measures)
    notes = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe_host(),
        "ranks": ranks,
        "seconds": round(time.monotonic() - began, 1),
        "spread": {key: round(value, 3) for key, value in measures[0]["spread"].items()},
        "errors": {key: round(value, 3) for key, value in errors.items()},
        "provenance": provenance(settings).to_json(),
    }
    part = max(notes["spread"], key=lambda name: notes["spread"][name])
    if notes["spread"][part] > _MUCH_SPREAD:
        print(
            f"warning: repeats lay far apart ({part}: {notes['spread'][part]:.0%}): something else "
            "ran here; calibrate again when nothing does",
            file=sys.stderr,
            flush=True,
        )
    write_document(output, measured_document(cluster, notes))
    print(f"{ranks} rank{'s' * (ranks > 1)} measured in {notes['seconds']:.0f} s", flush=True)


@contextmanager
def _progress(ranks: int) -> Iterator[Callable[[str, float], None]]:
    """A bar on rank 0's terminal, elsewhere a line for each part; other ranks are silent."""
    if not is_first_rank():
        yield lambda part, share: None
        return
    what = f"calibrating {ranks} rank{'s' * (ranks > 1)}"
    terminal = sys.stderr.isatty()
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
    parts: list[str] = []
    with tqdm(total=1.0, desc=what, bar_format=form, disable=not terminal) as bar:

        def advance(part: str, share: float) -> None:
            if part not in parts:
                parts.append(part)
                bar.set_description(f"{what}, {part}")
                if not terminal:
                    print(f"{what}: {part}", file=sys.stderr, flush=True)
            bar.update(share)

        yield advance
