"""A Hydra sweep (`-m`): a folder for its points, and what became of each.

Every point has a folder with `point.json`: its overrides, and whether it was measured, refused
(with the reason) or failed. A sweep that is started again in the same folder runs what is missing.
Points may run in other processes or on other machines (Hydra's launchers): files are all that the
sweep and its points share.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from parallel.errors import ConfigError, TesseraError, UserError

Json = dict[str, Any]
POINT, RESULT = "point.json", "result.json"
MEASURED, REFUSED, FAILED = "measured", "refused", "failed"
_SWEEP_FLAGS = {"-m", "--multirun"}
_DIRECTORY = "hydra.sweep.dir="
_NAME_LENGTH = 60


def is_sweep(arguments: Sequence[str]) -> bool:
    return bool(_SWEEP_FLAGS & set(arguments))


def with_folder(arguments: list[str], name: str) -> tuple[list[str], Path]:
    """The arguments with a folder for the sweep, given or by today's date and time, and points in
    it named by their overrides."""
    given = [a.lstrip("+").removeprefix(_DIRECTORY) for a in arguments if _DIRECTORY in a]
    if given:
        folder = Path(given[-1]).resolve()
    else:
        folder = Path(f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S}-{name}-sweep").resolve()
    kept = [a for a in arguments if _DIRECTORY not in a]
    own = (f"{_DIRECTORY}'{folder}'", "hydra.sweep.subdir='${point_name:${hydra.overrides.task}}'")
    return [*kept, *own], folder


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


def run_point(folder: Path, run: Callable[[], int]) -> int:
    """Runs a point that wasn't measured before and writes down what became of it: first that it
    failed, which stays true of a point that is killed. Errors of one point are the sweep's result,
    not its end."""
    overrides = list(HydraConfig.get().overrides.task)
    # Ranks are started with this process's arguments.
    sys.argv[1:] = overrides
    if _read(folder / POINT).get("state") == MEASURED and (folder / RESULT).exists():
        print(f"{' '.join(overrides)}: measured before", flush=True)
        return 0
    _write(folder, overrides, FAILED, "the point began and never ended: was it killed?", 0.0)
    began, state, reason, code = time.monotonic(), MEASURED, "", 0
    try:
        code = run()
    except TesseraError as error:
        state = REFUSED if isinstance(error, UserError) else FAILED
        reason = str(error)
    if code:
        state, reason = FAILED, f"the run ended with {code}; its messages say why"
    _write(folder, overrides, state, reason, time.monotonic() - began)
    return 0


def _write(folder: Path, overrides: Sequence[str], state: str, reason: str, seconds: float) -> None:
    point = {
        "overrides": list(overrides),
        "state": state,
        "reason": reason,
        "seconds": round(seconds, 3),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / POINT).write_text(json.dumps(point, indent=2) + "\n")


def read_points(folder: Path) -> list[Json]:
    """What became of each point, with its `result` where it was measured; by its overrides."""
    points = []
    for file in sorted(folder.glob(f"*/{POINT}")):
        point = _read(file)
        point["result"] = _read(file.parent / RESULT) if point["state"] == MEASURED else None
        points.append(point)
    return points


def sweep_code(points: Sequence[Json]) -> int:
    """0 when a point was measured and none failed, 1 when one failed, 2 when all were refused."""
    states = {point["state"] for point in points}
    if FAILED in states or not states:
        return 1
    return 0 if MEASURED in states else 2


def _read(file: Path) -> Json:
    if not file.exists():
        return {}
    try:
        found: Json = json.loads(file.read_text())
    except ValueError:
        raise ConfigError(f"{file} holds no JSON: remove it, and its point runs again") from None
    return found
