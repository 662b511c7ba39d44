"""`python launch/calibrate.py output=FILE.yaml`: measures this machine, writes it as a cluster.

Under torchrun: the cluster of the ranks that were started, on one host or many.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.entry import EXIT_DONE, EXIT_FAILED, run_command, under_torchrun
from launch.planning import CLUSTERS
from launch.provenance import provenance
from launch.ranks import start_local_ranks
from launch.run_folder import RunFolder
from launch.schema import CalibrateCommand, DeviceKind
from parallel.errors import ConfigError
from parallel.hardware.fields import read_yaml
from parallel.hardware.known import known_devices
from parallel.hardware.limits import usable_cores
from parallel.hardware.probe import probe_local

SUFFIXES = (".yaml", ".yml")
_EVERY_COUNT = 4
"""Up to so many cores every number of ranks is measured, beyond powers of two alone."""


def main(settings: CalibrateCommand) -> int:
    output = Path(settings.output)
    check_keys(settings, output)
    if under_torchrun():
        # Here torch comes in: the process that only starts ranks does without most of it.
        from launch.calibration_rank import run_calibration

        return run_calibration(settings, output)
    counts = rank_counts(settings)
    folder = RunFolder(settings).path()
    if len(counts) == 1 and settings.ranks is None:
        return _start(counts[0], settings.budget_seconds, output, folder)
    from parallel.calibration.document import by_ranks_document, write_document

    documents = {}
    with TemporaryDirectory(prefix="tessera-") as scratch:
        for ranks in counts:
            part = Path(scratch) / f"{ranks}.yaml"
            logs = None if folder is None else folder / f"ranks={ranks}"
            code = _start(ranks, settings.budget_seconds / len(counts), part, logs)
            if code != EXIT_DONE:
                return code
            documents[ranks] = read_yaml(part)
            # Its command line is this process's own, not the user's.
            del documents[ranks]["calibration"]["provenance"]
    document = by_ranks_document(documents)
    document["calibration"]["provenance"] = provenance(settings).to_json()
    write_document(output, document)
    print(f"wrote {output}: plan with cluster={output}")
    return EXIT_DONE


def check_keys(settings: CalibrateCommand, output: Path) -> None:
    """Raises `ConfigError` for what can be known before anything is measured."""
    if output.suffix not in SUFFIXES:
        raise ConfigError(
            f"output={output}: a cluster file ends in .yaml; say output={output}.yaml"
        )
    if not output.resolve().parent.is_dir():
        raise ConfigError(f"output={output}: its folder doesn't exist; make it first")
    if output.is_dir():
        raise ConfigError(f"output={output} is a folder; give a file in it")
    if not settings.budget_seconds > 0:
        raise ConfigError(
            f"budget_seconds={settings.budget_seconds} is out of range; give a positive number"
        )
    if settings.collective_timeout_seconds <= 0:
        raise ConfigError(
            f"collective_timeout_seconds={settings.collective_timeout_seconds} is out of range; "
            "give a positive number"
        )
    if settings.threads is not None and settings.threads < 1:
        raise ConfigError(f"threads={settings.threads} is out of range; give at least 1")
    if settings.ranks is not None:
        if under_torchrun():
            raise ConfigError(
                "ranks can't be given under torchrun, which says how many there are; leave it out"
            )
        if not settings.ranks or min(settings.ranks) < 1:
            raise ConfigError(f"ranks={settings.ranks}: give numbers of at least 1, as in [1,2]")


def rank_counts(settings: CalibrateCommand) -> list[int]:
    """On CPU what a rank gets depends on how many share the machine; a GPU is a rank's alone."""
    if settings.ranks is not None:
        return sorted(set(settings.ranks))
    if settings.device is not DeviceKind.cpu:
        devices = probe_local(known=known_devices(CLUSTERS / "devices")).devices
        if devices[0].type.kind == "cuda":
            return [len(devices)]
    cores = usable_cores()
    if cores <= _EVERY_COUNT:
        return list(range(1, cores + 1))
    return sorted({cores, *(1 << n for n in range(cores.bit_length()) if 1 << n <= cores)})


def _start(ranks: int, budget_seconds: float, output: Path, folder: Path | None) -> int:
    more = [f"output='{output}'", f"budget_seconds={budget_seconds}", "ranks=null"]
    return start_local_ranks(Path(__file__).resolve(), ranks, EXIT_FAILED, more, folder=folder)


if __name__ == "__main__":
    run_command("calibrate", CalibrateCommand, main)
