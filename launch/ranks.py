"""Local ranks without torchrun: torch elastic starts them, with a rendezvous on a free port."""

from __future__ import annotations

import logging
import math
import os
import platform
import signal
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from launch.entry import EXIT_DONE, EXIT_FAILED, EXIT_USER
from launch.run_folder import told_to_ranks

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_KILLED = {-s for s in signal.Signals if s is not signal.SIGTERM}
"""Exit codes of processes that a signal ended, but for the one that ends a whole job."""
_LIMIT, _ELASTIC_SECONDS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", 30
_LEAVING_SECONDS = 10
"""Between the end of a drain and that of a rank."""


def start_local_ranks(
    script: Path,
    count: int,
    after_signal: int,
    more: Sequence[str] = (),
    restarts: int = 0,
    folder: Path | None = None,
) -> int:
    """Runs `script` with this process's arguments and `more` as `count` ranks, which
    are all started anew when one fails, `restarts` times at most, and write their logs
    into `folder`. Returns the exit code: 0 when all ended well, 2 if a rank found a user's error,
    else 1; `after_signal` when a signal ended the run."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in (
        "torch.distributed.elastic",
        "torch.distributed.launcher",
        "torch.distributed.run",
    ):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    allow_drain(sys.argv, os.environ)
    # Torch elastic would leave a folder of its own for each run.
    scratch = TemporaryDirectory(prefix="tessera-ranks-", ignore_cleanup_errors=True)
    with told_to_ranks(folder), scratch as elastic_folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=f"tessera-{os.getpid()}",
            max_restarts=restarts,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=elastic_folder),
        )
        try:
            elastic_launch(config, sys.executable)("-u", str(script), *sys.argv[1:], *more)
        except ChildFailedError as error:
            return failed_code(error.failures)
        except SignalException:
            return after_signal
    return EXIT_DONE


def allow_drain(arguments: Sequence[str], environment: MutableMapping[str, str]) -> None:
    """Torch elastic (2.12 on) kills what is still there 30 s after a signal. A server whose
    `drain_seconds` among its arguments is longer gets longer; a user's own limit stands."""
    said = [a.lstrip("+").partition("=") for a in arguments]
    given = [value for key, _, value in said if key == "drain_seconds"]
    with suppress(ValueError):  # the ranks refuse what isn't a number
        seconds = float(given[-1]) if given else 0.0
        if math.isfinite(seconds) and seconds + _LEAVING_SECONDS > _ELASTIC_SECONDS:
            environment.setdefault(_LIMIT, str(math.ceil(seconds + _LEAVING_SECONDS)))


def failed_code(failures: Mapping[int, ProcessFailure]) -> int:
    """2 if a rank found a user's error, else 1. Rank 0 names others that are killed; when it is
    the one, it is named here: others may be ended before they say it."""
    first = failures.get(0)
    if first is not None and first.exitcode in _KILLED:
        name = first.signal_name()
        print(
            f"error: rank 0 (pid {first.pid} on {platform.node()}) died of {name}",
            file=sys.stderr,
            flush=True,
        )
    codes = {failure.exitcode for failure in failures.values()}
    return EXIT_USER if EXIT_USER in codes else EXIT_FAILED
