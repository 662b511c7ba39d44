"""The cluster file that calibration writes, and files of several numbers of ranks as one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from parallel.errors import ConfigError
from parallel.hardware.facts import Cluster
from parallel.hardware.writing import cluster_document

Json = dict[str, Any]
_HEAD = "# Measured by launch/calibrate.py; docs/contract.md says what each key means.\n"
_COMMON = ("date", "host", "processor", "system", "versions")
"""What is said once of all numbers of ranks."""


def measured_document(cluster: Cluster, notes: Json) -> Json:
    """`notes` say how the figures came about; readers of the cluster pass them over."""
    return {"calibration": notes, **cluster_document(cluster)}


def by_ranks_document(documents: Mapping[int, Json]) -> Json:
    """The documents of one machine, each measured with another number of ranks."""
    first = documents[min(documents)]["calibration"]
    seconds = sum(d["calibration"]["seconds"] for d in documents.values())
    common = {key: first[key] for key in _COMMON}
    return {
        "calibration": {**common, "seconds": seconds},
        "by_ranks": {
            ranks: {**documents[ranks], "calibration": _own(documents[ranks]["calibration"])}
            for ranks in sorted(documents)
        },
    }


def _own(notes: Json) -> Json:
    return {key: value for key, value in notes.items() if key not in _COMMON}


def write_document(path: Path, document: Json) -> None:
    """The file appears whole or not at all. Raises `ConfigError` where it can't be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(_HEAD + yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(
            f"output={path}: {error.strerror}; give a file that can be written"
        ) from None
