"""Settings → what a result came from."""

from __future__ import annotations

import sys
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from launch.planning import CLUSTERS
from launch.schema import CalibrateCommand, PlanKeys
from parallel.hardware.calibrated import Calibration, read_calibration
from parallel.hardware.catalogue import cluster_names
from parallel.hardware.facts import Cluster
from parallel.report.checkout import read_commit
from parallel.report.provenance import (
    Provenance,
    cluster_facts,
    installed_versions,
    shown_command,
    without_secrets,
)

ROOT = Path(__file__).resolve().parent.parent


def provenance(settings: PlanKeys | CalibrateCommand, cluster: Cluster | None = None) -> Provenance:
    """`cluster` is the one that the prediction took."""
    calibration = None
    if cluster is not None and isinstance(settings, PlanKeys):
        calibration = _calibration(settings.cluster, cluster.device_count)
    return Provenance(
        datetime.now(UTC).isoformat(timespec="seconds"),
        shown_command([_script(), *sys.argv[1:]]),
        plain_settings(settings),
        installed_versions(),
        read_commit(ROOT),
        None if cluster is None else cluster_facts(cluster),
        calibration,
    )


def _script() -> str:
    path = Path(sys.argv[0]).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _calibration(cluster: str, ranks: int) -> Calibration | None:
    if cluster in cluster_names(CLUSTERS):
        return read_calibration(CLUSTERS / f"{cluster}.yaml", ranks)
    return read_calibration(Path(cluster), ranks)


def plain_settings(settings: object) -> dict[str, Any]:
    """As YAML and JSON have them, without secrets."""
    return without_secrets(_plain(settings))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return value.value if isinstance(value, Enum) else value
