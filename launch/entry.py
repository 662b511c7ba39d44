"""From a command line to one typed settings object, and from errors to exit codes.

Hydra composes; the result is merged into the schema, so that an unknown key or a value of the wrong
type is refused with the nearest key. `+key=` on a known key means `key=`.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import hydra
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from launch.openmp import wait_briefly
from launch.sweep import point_folder, read_points, sweep_code
from launch.sweep_arguments import is_sweep, let_points_import, refuse_ranks, sweep_arguments
from launch.sweep_point import run_point
from parallel.environment import check_environment
from parallel.errors import ConfigError, RunError, TesseraError, UserError, did_you_mean

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
Settings = TypeVar("Settings")

EXIT_DONE, EXIT_FAILED, EXIT_USER = 0, 1, 2


def known_keys(schema: type) -> dict[str, bool]:
    """Dotted keys of a schema; True for those that hold other keys."""
    keys: dict[str, bool] = {}
    hints = get_type_hints(schema)
    for f in fields(schema):
        kind = hints[f.name]
        keys[f.name] = is_dataclass(kind)
        if is_dataclass(kind):
            keys.update({f"{f.name}.{k}": v for k, v in known_keys(cast(type, kind)).items()})
    return keys


def checked_arguments(arguments: list[str], schema: type) -> list[str]:
    """Refuses unknown keys and makes `+known=` a plain override. Hydra's flags come first: it
    doesn't read keys on both sides of one, as in `tp=1,2 -m pp=2`."""
    keys = known_keys(schema)
    flags: list[str] = []
    overrides: list[str] = []
    before = ""
    for argument in arguments:
        if argument.startswith("-"):
            flags.append(_flag(argument, keys))
        elif before.startswith("-") and "=" not in argument:
            flags.append(argument)
        else:
            overrides.append(_checked(argument, keys))
        before = argument
    return flags + overrides


def _flag(argument: str, keys: dict[str, bool]) -> str:
    key = argument.lstrip("-").partition("=")[0].replace("-", "_")
    if key in keys:
        raise ConfigError(f"'{argument}': keys have no dashes in front; say {key}=VALUE")
    return argument


def _checked(argument: str, keys: dict[str, bool]) -> str:
    if "=" not in argument:
        if argument.strip("+:") in keys:
            raise ConfigError(f"'{argument}' has no value; say {argument.strip('+:')}=VALUE")
        return argument  # Hydra refuses it
    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise ConfigError(
            f"'{argument}' can't be read as key=value ({str(error).splitlines()[0]}); quote a "
            "value that holds '=', ',' or brackets once more: key=\"'value'\""
        ) from None
    key = override.key_or_group
    if key.split(".")[0].split("/")[0] == "hydra":
        _check_hydra(key)
        return argument
    value = None if override.is_sweep_override() else override.value()
    within = [f"{key}.{k}" for k in value] if isinstance(value, dict) else []
    for given in (key, *within):
        if given not in keys:
            near = did_you_mean(given, keys)
            raise ConfigError(f"unknown key '{given}'{near}; known: {_listed(keys)}")
    if override.is_delete():
        raise ConfigError(f"'{argument}': a known key can't be removed; give it a value or null")
    return f"++{argument.lstrip('+')}" if argument.startswith("+") else argument


def _check_hydra(key: str) -> None:
    """Launchers, sweepers and callbacks have keys of their own."""
    keys = {f"hydra.{k}": holds for k, holds in known_keys(HydraConf).items()}
    parts = key.split(".")
    above = [".".join(parts[:n]) for n in range(2, len(parts))]
    if "/" not in key and key not in keys and not any(keys.get(a) is False for a in above):
        raise ConfigError(f"unknown key '{key}'{did_you_mean(key, keys)}")


def _listed(keys: dict[str, bool]) -> str:
    return ", ".join(k for k, holds in keys.items() if not holds)


_CHOICE = re.compile(r"Invalid value '(.*)', expected one of \[(.*)\]")


def to_settings(config: DictConfig, schema: type[Settings]) -> Settings:
    """Raises `ConfigError` for a missing value, a wrong type or an unknown key."""
    plain = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{missing[0]} is not given; say {missing[0]}=…")
        return cast(Settings, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        key = getattr(error, "full_key", None)
        if key and "is not a ListConfig" in message:
            raise ConfigError(f"{key}: expected a list, as in {key}=[…]") from None
        if isinstance(error, ConfigKeyError) and key:
            near = did_you_mean(key, known_keys(schema))
            raise ConfigError(f"unknown key '{key}'{near}") from None
        if key and (choice := _CHOICE.fullmatch(message)):
            near = did_you_mean(choice[1], choice[2].split(", "))
            raise ConfigError(f"{key}={choice[1]} is unknown{near}; legal: {choice[2]}") from None
        raise ConfigError(f"{key}: {message}" if key else message) from None


def is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def fail(error: TesseraError) -> int:
    """Prints the message (rank 0 alone under torchrun) and returns the exit code."""
    if is_first_rank():
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        # The first rank to leave ends the others: let rank 0 speak before.
        time.sleep(1.0)
    return EXIT_USER if isinstance(error, UserError) else EXIT_FAILED


def run_command(
    name: str,
    schema: type[Settings],
    task: Callable[[Settings], int | None],
    compare: Callable[[Path], None] | None = None,
) -> None:
    """Runs `task` with the settings of `configs/<name>.yaml` and the command line, and exits:
    0 done, 1 a run that failed, 2 a user's error (Hydra's own included). A sweep's points end in
    its folder; `compare` shows them in the end."""
    try:
        check_environment(os.environ)
        wait_briefly(os.environ)
        if not is_sweep(sys.argv[1:]):
            code = _run_once(name, schema, task)
        elif under_torchrun():
            refuse_ranks(name, sys.argv[1:])
        else:
            code = _run_sweep(name, schema, task, compare)
    except TesseraError as error:
        code = fail(error)
    sys.exit(code)


def _run_once(name: str, schema: type[Settings], task: Callable[[Settings], int | None]) -> int:
    codes: list[int] = []
    started: list[bool] = []

    def job(config: DictConfig) -> None:
        started.append(True)
        try:
            codes.append(task(to_settings(config, schema)) or EXIT_DONE)
        except TesseraError as error:
            codes.append(fail(error))

    sys.argv[1:] = checked_arguments(sys.argv[1:], schema)
    left = _compose_and_run(name, job)
    if codes or not left:
        return codes[0] if codes else EXIT_DONE
    # Hydra itself refuses before the task starts.
    return EXIT_FAILED if started else EXIT_USER


def _run_sweep(
    name: str,
    schema: type[Settings],
    task: Callable[[Settings], int | None],
    compare: Callable[[Path], None] | None,
) -> int:
    """What became of its points is in their files, wherever they ran."""
    # Single runs, plans above all, begin sooner without.
    from launch.sweep_watch import watching

    table = compare is not None and sys.stdout.isatty()

    def job(config: DictConfig) -> None:
        folder = point_folder()
        assert folder is not None
        run_point(folder, lambda: task(to_settings(config, schema)) or EXIT_DONE, table)

    arguments, folder = sweep_arguments(sys.argv[1:], name)
    sys.argv[1:] = checked_arguments(arguments, schema)
    let_points_import(CONFIGS.parent)
    with watching(folder, table):
        left = _compose_and_run(name, job)
    points = read_points(folder)
    if not points:
        return EXIT_USER if left else EXIT_DONE
    if compare is not None:
        compare(folder)
    return max(EXIT_FAILED if left else EXIT_DONE, sweep_code(points))


def _compose_and_run(name: str, job: Callable[[DictConfig], None]) -> bool:
    """Whether Hydra left with an error, which it has shown then."""
    try:
        hydra.main(version_base=None, config_path=str(CONFIGS), config_name=name)(job)()
    except SystemExit as leaving:
        return leaving.code not in (0, None)
    return False


def under_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def world_size() -> int | None:
    """The number of ranks that were started, or None when this process may start them."""
    if not under_torchrun():
        return None
    try:
        return int(os.environ["WORLD_SIZE"])
    except ValueError:
        raise RunError(f"WORLD_SIZE={os.environ['WORLD_SIZE']} is not a number") from None
