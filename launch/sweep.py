"""A Hydra sweep (`-m`): a folder for its points, and what became of each.

Every point has a folder with `point.json`: its overrides, and whether it waits, runs, was measured,
refused (with the reason) or failed. A sweep that is started again in the same folder runs what is
missing. Points may run in other processes or on other machines (Hydra's launchers): files are all
that the sweep and its points share.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from parallel.errors import ConfigError

Json = dict[str, Any]
POINT, RESULT = "point.json", "result.json"
WAITING, RUNNING = "waiting", "running"
MEASURED, REFUSED, FAILED = "measured", "refused", "failed"
_UNFINISHED = {
    WAITING: "the launcher never started it",
    RUNNING: "the point began and never ended: was it killed?",
}
_NAME_LENGTH = 60


def point_name(overrides: Sequence[str]) -> str:
    """A folder's name, the same for the same overrides in whatever order."""
    ordered = sorted((a.lstrip("+") for a in overrides), key=_degrees_first)
    digest = hashlib.sha256("\n".join(ordered).encode()).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9=.,_-]+", "_", ",".join(ordered))
    return f"{plain[:_NAME_LENGTH]}-{digest}"


def _degrees_first(override: str) -> tuple[bool, str]:
    return override.partition("=")[0] not in ("tp", "pp", "dp", "stage_tp"), override


# Where the module is imported: points that run in other processes name their folders too.
OmegaConf.register_new_resolver("point_name", point_name, replace=True)


def point_folder() -> Path | None:
    """The folder of the point that runs, None outside a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().runtime.output_dir)


def was_measured(folder: Path) -> bool:
    return read_json(folder / POINT).get("state") == MEASURED and (folder / RESULT).exists()


def expect_points(folder: Path, points: Sequence[Sequence[str]]) -> None:
    """Writes down that these will run, unless they were measured before, and forgets others that
    an earlier start expected in vain."""
    names = {point_name(overrides) for overrides in points}
    for place, point in current_points(folder):
        if point["state"] == WAITING and place.name not in names:
            (place / POINT).unlink()
    for overrides in points:
        place = folder / point_name(overrides)
        if not was_measured(place):
            write_point(place, overrides, WAITING)


def write_point(
    folder: Path, overrides: Sequence[str], state: str, reason: str = "", seconds: float = 0.0
) -> None:
    """At once: another process may read meanwhile."""
    point = {
        "overrides": list(overrides),
        "state": state,
        "reason": reason,
        "seconds": round(seconds, 3),
    }
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{POINT}-{os.getpid()}"
    scratch.write_text(json.dumps(point, indent=2) + "\n")
    scratch.replace(folder / POINT)


def current_points(folder: Path) -> list[tuple[Path, Json]]:
    """Each point's folder and what is known of it at this moment, by their names."""
    return [(file.parent, read_json(file)) for file in sorted(folder.glob(f"*/{POINT}"))]


def read_points(folder: Path) -> list[Json]:
    """What became of each point once all is over, with its `result` where it was measured. What
    didn't end has failed."""
    points = []
    for place, point in current_points(folder):
        if point["state"] in _UNFINISHED:
            point |= {"reason": _UNFINISHED[point["state"]], "state": FAILED}
        point["result"] = read_json(place / RESULT) if point["state"] == MEASURED else None
        points.append(point)
    return points


def sweep_code(points: Sequence[Json]) -> int:
    """0 when a point was measured and none failed, 1 when one failed, 2 when all were refused."""
    states = {point["state"] for point in points}
    if FAILED in states or not states:
        return 1
    return 0 if MEASURED in states else 2


def read_json(file: Path) -> Json:
    """Empty where there is no such file."""
    if not file.exists():
        return {}
    try:
        found: Json = json.loads(file.read_text())
    except ValueError:
        raise ConfigError(f"{file} holds no JSON: remove it, and its point runs again") from None
    return found
