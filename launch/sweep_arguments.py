"""What a sweep's command line says, and what is added to it for Hydra."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hydra.core.config_store import ConfigStore

from parallel.errors import ConfigError, did_you_mean

_SWEEP = {"-m", "--multirun", "hydra.mode=MULTIRUN"}
_DIRECTORY = "hydra.sweep.dir="
_LAUNCHER = "hydra/launcher="
_PLUGINS = {
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "hydra.launcher.n_jobs=1"),
    "submitit_local": (
        "hydra_plugins.hydra_submitit_launcher",
        "hydra.sweeper.max_batch_size=1",
    ),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", None),
}
"""Of each launcher its module, and the override that has it run one point at a time on this
machine: points beside each other would share its cores, memory and devices, and measure that."""
_CALLBACK = "+hydra.callbacks.points._target_=launch.sweep_callback.ExpectPoints"


def is_sweep(arguments: Sequence[str]) -> bool:
    return bool(_SWEEP & set(arguments))


def refuse_ranks(name: str, arguments: Sequence[str]) -> None:
    """Raises `ConfigError`: every rank would start the sweep."""
    command = shlex.join(["python", f"launch/{name}.py", *arguments])
    raise ConfigError(
        "a sweep (-m) can't run under torchrun: every rank would start it; "
        f"say `{command}`, which starts the ranks of each point"
    )


def sweep_arguments(arguments: Sequence[str], name: str) -> tuple[list[str], Path]:
    """The arguments with a folder for the sweep, given or by today's date and time, points in it
    named by their overrides and written down before they run; and that folder."""
    given = [a.lstrip("+").removeprefix(_DIRECTORY) for a in arguments if _DIRECTORY in a]
    if given:
        folder = Path(given[-1].strip("'\"")).resolve()
    else:
        folder = Path(f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S}-{name}-sweep").resolve()
    kept = [a for a in arguments if _DIRECTORY not in a]
    if not any(a.startswith("hydra/sweeper=") for a in kept):
        importlib.import_module("hydra._internal.core_plugins.basic_sweeper")
        _check_plugin_keys("sweeper", "basic", kept)
    own = [
        f"{_DIRECTORY}'{folder}'",
        "hydra.sweep.subdir='${point_name:${hydra.overrides.task}}'",
        _CALLBACK,
    ]
    return [*kept, *own, *_launcher_arguments(kept)], folder


def _check_plugin_keys(kind: str, name: str, arguments: Sequence[str]) -> None:
    """Of a launcher or sweeper whose configuration Hydra has. Raises `ConfigError`."""
    node = ConfigStore.instance().load(f"hydra/{kind}/{name}.yaml").node
    known = [f"hydra.{kind}.{key}" for key in map(str, node)]
    for key in (argument.lstrip("+").partition("=")[0] for argument in arguments):
        if key.startswith(f"hydra.{kind}.") and ".".join(key.split(".")[:3]) not in known:
            raise ConfigError(f"unknown key '{key}'{did_you_mean(key, known)}")


def _launcher_arguments(arguments: Sequence[str]) -> list[str]:
    chosen = [a.removeprefix(_LAUNCHER) for a in arguments if a.startswith(_LAUNCHER)]
    if not chosen or chosen[-1] not in _PLUGINS:
        return []
    module, alone = _PLUGINS[chosen[-1]]
    if not _is_installed(module):
        raise ConfigError(
            f"{_LAUNCHER}{chosen[-1]} isn't installed; say pip install 'tessera[sweeps]', "
            "or leave it out: points then run one after the other"
        )
    importlib.import_module(f"{module}.config")
    _check_plugin_keys("launcher", chosen[-1], arguments)
    if alone is None or any(a.startswith(alone.partition("=")[0]) for a in arguments):
        return []
    return [alone]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def let_points_import(root: Path) -> None:
    """Processes of Hydra's launchers find `launch` where this one runs from a checkout."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(root) if not before else f"{root}{os.pathsep}{before}"
