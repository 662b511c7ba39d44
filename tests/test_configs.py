"""Every YAML in `configs/`, and what launchers make of keys: known, spelt in any of Hydra's ways,
mistyped. Composed here as `run_command` does it, and once by each launcher in a process of its own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from launch.entry import CONFIGS, checked_arguments, known_keys, to_settings
from launch.schema import (
    CalibrateCommand,
    GenerateCommand,
    MeasureCommand,
    PlanCommand,
    PlanKeys,
    RunKeys,
    ServeCommand,
    SubmitCommand,
)
from parallel.errors import ConfigError, HardwareError
from parallel.hardware.catalogue import load_cluster
from parallel.hardware.device_type import DeviceType
from parallel.hardware.known import known_devices, read_device
from tests.commands import ROOT, command, environment

LAUNCHERS: dict[str, type] = {
    "plan": PlanCommand,
    "calibrate": CalibrateCommand,
    "generate": GenerateCommand,
    "measure": MeasureCommand,
    "serve": ServeCommand,
    "submit": SubmitCommand,
}
SHARED: dict[str, type] = {"base": PlanKeys, "run": RunKeys}
COMPOSED = LAUNCHERS | SHARED
REQUIRED = {"calibrate": ["output=x.yaml"], "generate": ["input=x", "output=x"]}
CLUSTERS = CONFIGS / "clusters"
DEVICES = sorted((CLUSTERS / "devices").glob("*.yaml"))


def composed(name: str, *arguments: str) -> dict[str, Any]:
    """Settings of a launcher, given its arguments."""
    given = checked_arguments([*arguments, *REQUIRED.get(name, [])], COMPOSED[name])
    with initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
        settings: Any = to_settings(compose(name, given), COMPOSED[name])
    return asdict(settings)


def dotted(config: Mapping[str, Any], before: str = "") -> dict[str, bool]:
    """As `known_keys` says it of a schema."""
    keys: dict[str, bool] = {}
    for key, value in config.items():
        keys[f"{before}{key}"] = isinstance(value, dict)
        if isinstance(value, dict):
            keys |= dotted(value, f"{before}{key}.")
    return keys


def leaves(name: str) -> list[str]:
    return [key for key, holds in known_keys(COMPOSED[name]).items() if not holds]


def test_every_file_is_composed_here() -> None:
    assert {p.stem for p in CONFIGS.glob("*.yaml")} == set(COMPOSED)
    launchers = {p.stem for p in (CONFIGS.parent / "launch").glob("*.py")}
    assert set(LAUNCHERS) <= launchers


@pytest.mark.parametrize("name", sorted(COMPOSED))
def test_a_file_gives_every_key_its_default(name: str) -> None:
    with initialize_config_dir(version_base=None, config_dir=str(CONFIGS)):
        plain = cast(dict[str, Any], OmegaConf.to_container(compose(name)))
    assert dotted(plain) == known_keys(COMPOSED[name])
    schema = OmegaConf.structured(COMPOSED[name])
    assert OmegaConf.merge(schema, plain) == schema


@pytest.mark.parametrize("name", sorted(LAUNCHERS))
def test_every_spelling_of_an_override_is_the_same(name: str) -> None:
    key, value = ("ranks", "[4]") if name == "calibrate" else ("tp", "4")
    plain, added, forced = (composed(name, f"{sign}{key}={value}") for sign in ("", "+", "++"))
    assert plain == added == forced
    assert plain[key] == ([4] if name == "calibrate" else 4)


@pytest.mark.parametrize("name", sorted(LAUNCHERS))
def test_a_launcher_hears_a_key_in_every_spelling(name: str) -> None:
    """From the shell: a value that the planner refuses, which is what heard it."""
    key, words = "tp=10", "error: tp=10 is more than the 9 query heads"
    if name == "calibrate":
        key, words = "ranks=[0]", "error: ranks=[0]"
    more = ("submit=dry",) if name == "submit" else REQUIRED.get(name, [])
    started = [
        subprocess.Popen(
            command(name, f"{sign}{key}", *more),
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for sign in ("", "+", "++")
    ]
    said = [process.communicate(timeout=100)[1] for process in started]
    assert all(process.returncode == 2 for process in started), said
    assert said[0].startswith(words) and said[0] == said[1] == said[2]


@pytest.mark.parametrize("name", sorted(LAUNCHERS))
def test_every_key_may_be_added(name: str) -> None:
    """Each with the value that it has: `+` must not refuse what is there."""
    keys = [k for k in leaves(name) if k not in ("input", "output")]
    schema = OmegaConf.structured(COMPOSED[name])
    values = {k: OmegaConf.select(schema, k) for k in keys}
    said = [f"{k}={_text(v)}" for k, v in values.items()]
    assert composed(name, *(f"+{s}" for s in said)) == composed(name)


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(getattr(value, "value", value))


@pytest.mark.parametrize("sign", ["", "+", "++"])
@pytest.mark.parametrize("name", sorted(LAUNCHERS))
def test_a_mistyped_key_names_the_nearest(name: str, sign: str) -> None:
    """A letter lost, at the top, in a group or in a group's name, in a sweep too."""
    long = [key for key in known_keys(LAUNCHERS[name]) if len(key) > 4]
    assert long
    for key in long:
        for at in (1, len(key) - 2):
            wrong = key[:at] + key[at + 1 :]
            with pytest.raises(ConfigError) as raised:
                checked_arguments(["-m", f"{sign}{wrong}=1,2"], LAUNCHERS[name])
            assert f"unknown key '{wrong}'; did you mean '{key}'?" in str(raised.value)


@pytest.mark.parametrize(
    ("argument", "near"),
    [
        ("engine={requets: 4}", "engine.requests"),
        ("+precision={weigts: bf16}", "precision.weights"),
        ("++slo={ttft_sm: 4}", "slo.ttft_ms"),
    ],
)
@pytest.mark.parametrize("name", sorted(set(LAUNCHERS) - {"calibrate"}))
def test_a_mistyped_key_within_a_value_names_the_nearest(
    name: str, argument: str, near: str
) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{near}'"):
        checked_arguments([argument], LAUNCHERS[name])


@pytest.mark.parametrize("argument", ["--tp=4", "-tp=4", "--tp", "tp", "+tp", "tp:"])
def test_a_key_in_another_programs_spelling_is_told_the_right_one(argument: str) -> None:
    with pytest.raises(ConfigError, match="say tp=VALUE"):
        checked_arguments([argument, "4"], PlanCommand)
    with pytest.raises(ConfigError, match="say drain_seconds=VALUE"):
        checked_arguments(["--drain-seconds=4"], ServeCommand)
    flags = ["--config-dir", "here", "--cfg", "job", "-m", "hydra.sweep.dir=x"]
    assert checked_arguments(flags, ServeCommand) == flags


def test_flags_may_stand_anywhere() -> None:
    given = ["+tp=1,2", "-m", "pp=2", "--config-dir", "here", "hydra.sweep.dir=x"]
    ordered = ["-m", "--config-dir", "here", "++tp=1,2", "pp=2", "hydra.sweep.dir=x"]
    assert checked_arguments(given, PlanCommand) == ordered


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_a_mistyped_key_of_hydra_names_the_nearest(sign: str) -> None:
    for wrong, near in (("swep.dir", "sweep.dir"), ("job.chdr", "job.chdir")):
        with pytest.raises(ConfigError, match=f"did you mean 'hydra.{near}'"):
            checked_arguments([f"{sign}hydra.{wrong}=x"], PlanCommand)
    free = ["hydra.launcher.n_jobs=2", "+hydra.callbacks.mine.a=b", "hydra/launcher=joblib"]
    assert checked_arguments(free, PlanCommand) == free


def test_one_value_where_a_list_belongs_is_told() -> None:
    with pytest.raises(ConfigError, match=r"stages: expected a list, as in stages=\["):
        composed("plan", "stages=3")


def test_a_group_may_be_given_as_one_value() -> None:
    assert composed("plan", "+engine={requests: 4}") == composed("plan", "engine.requests=4")


@pytest.mark.parametrize(
    ("config", "near"),
    [({"memory_gb": 1}, "memory_gib"), ({"budget": {"gpu": 1}}, "budget.gpus")],
)
def test_a_mistyped_key_of_a_file_names_the_nearest(config: dict[str, Any], near: str) -> None:
    """Files that a user's `--config-dir` brings are read after the command line."""
    with pytest.raises(ConfigError, match=f"unknown key .*did you mean '{near}'"):
        to_settings(OmegaConf.create(config), PlanCommand)


# ------------------------------------------------------------------- clusters and devices


def test_every_device_file_is_a_device_type() -> None:
    known = known_devices(CLUSTERS / "devices")
    files = {path.stem for path in DEVICES}
    assert set(known) == files and files
    assert all(isinstance(device.type, DeviceType) for device in known.values())


@pytest.mark.parametrize("path", DEVICES, ids=lambda p: p.stem)
def test_a_mistyped_field_of_a_device_names_the_nearest(path: Path) -> None:
    fields = yaml.safe_load(path.read_text("utf-8"))
    fields["link"] = {"kind": "pcie", "bandwidth_gb_per_second": 1, "latency_microseconds": 1}
    assert isinstance(read_device(fields, "here", path.stem).type, DeviceType)
    for key in fields:
        wrong = key[:-2] + key[-1]
        mistyped = {wrong if k == key else k: v for k, v in fields.items()}
        with pytest.raises(HardwareError, match=f"unknown key '{wrong}'; did you mean '{key}'"):
            read_device(mistyped, "here", path.stem)


def fields_of(path: Path) -> list[str]:
    """Keys of a file, each once."""
    found = (line.split("#")[0].strip(" -{") for line in path.read_text("utf-8").splitlines())
    return sorted({text.partition(":")[0] for text in found if ":" in text})


@pytest.mark.parametrize("path", sorted(CLUSTERS.glob("*x*.yaml")), ids=lambda p: p.stem)
def test_a_mistyped_field_of_a_cluster_names_the_nearest(path: Path, tmp_path: Path) -> None:
    text, file = path.read_text("utf-8"), tmp_path / "mine.yaml"
    for key in (k for k in fields_of(path) if len(k) > 4):
        wrong = key[:-2] + key[-1]
        file.write_text(text.replace(f"{key}:", f"{wrong}:"))
        with pytest.raises(HardwareError, match=f"unknown key '{wrong}'; did you mean '{key}'"):
            load_cluster(str(file), CLUSTERS)
