"""What a result came from: enough to run it again, and to know why another one differs."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import parallel
from parallel.hardware.calibrated import Calibration
from parallel.hardware.facts import Cluster
from parallel.hardware.writing import cluster_document
from parallel.report.checkout import Commit

Json = dict[str, Any]
HIDDEN = "***"
_PACKAGES = {
    "torch": ("torch",),
    "hydra": ("hydra-core",),
    "numpy": ("numpy",),
    "deepspeed": ("deepspeed",),
    "nccl": ("nvidia-nccl-cu13", "nvidia-nccl-cu12"),
}
_SECRET = re.compile(r"(^|[._])((key|password|secret|credential)s?|token)($|\.)")
_HASH_LETTERS = 12


@dataclass(frozen=True)
class Provenance:
    """`config` is what the command line, the YAML files and the defaults came to, without secrets;
    `cluster` what the prediction took the machines to be, in the form of a cluster file, None where
    there was no prediction; `calibration` is None where the figures weren't measured."""

    date: str
    command: Sequence[str]
    config: Json
    versions: Mapping[str, str]
    commit: Commit | None
    cluster: Json | None = None
    calibration: Calibration | None = None

    def to_json(self) -> Json:
        return {
            "date": self.date,
            "command": list(self.command),
            "config": self.config,
            "versions": dict(self.versions),
            "commit": None if self.commit is None else self.commit.to_json(),
            "cluster": self.cluster,
            "calibration": None if self.calibration is None else self.calibration.to_json(),
        }


def installed_versions(root: Path = Path("/")) -> dict[str, str]:
    """Of what decides a result, where it is installed; nothing of it is imported."""
    found = {"tessera": parallel.__version__, "python": platform.python_version()}
    for name, packages in _PACKAGES.items():
        versions = (_version(package) for package in packages)
        if (one := next(filter(None, versions), None)) is not None:
            found[name] = one
    if (driver := _driver(root)) is not None:
        found["driver"] = driver
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver(root: Path) -> str | None:
    """NVIDIA's, as its kernel module says: the library that asks it takes far longer."""
    try:
        text = (root / "sys/module/nvidia/version").read_text().strip()
    except OSError:
        return None
    return text or None


def cluster_facts(cluster: Cluster) -> Json:
    return {"name": cluster.name, **cluster_document(cluster)}


def without_secrets(config: Mapping[str, Any]) -> Json:
    """`***` in place of values whose keys are called a key, a password or the like, at any depth;
    a file that holds one may be named."""
    return {
        key: without_secrets(value)
        if isinstance(value, Mapping)
        else HIDDEN
        if value is not None and _SECRET.search(key)
        else value
        for key, value in config.items()
    }


def shown_command(words: Sequence[str]) -> list[str]:
    """The same of `key=value` words."""
    return [
        f"{key}={HIDDEN}" if is_value and _SECRET.search(key.lstrip("+")) else word
        for word in words
        for key, is_value, _ in (word.partition("="),)
    ]


def provenance_facts(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a page says of it; `body` is a result's JSON form."""
    found = body.get("provenance")
    if found is None:
        return []
    commit, calibration = found["commit"], found["calibration"]
    facts = [
        ("made", found["date"]),
        ("command", " ".join(found["command"])),
        ("versions", ", ".join(f"{name} {text}" for name, text in found["versions"].items())),
    ]
    if commit is not None:
        changed = ", with changes" if commit["modified"] else ""
        facts.append(("commit", commit["hash"][:_HASH_LETTERS] + changed))
    if calibration is not None:
        most = max(calibration["spread"].values(), default=0.0)
        text = f"{calibration['file']}, {calibration['date']}, repeats within {most:.0%}"
        facts.append(("calibration", text))
    return facts
