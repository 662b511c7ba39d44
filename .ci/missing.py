"""Prints what of setup.cfg this environment lacks; exit status 1 when anything is missing.

Usage: missing.py [EXTRA]. Standard library and `packaging` alone."""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def missing(extra: str | None) -> list[str]:
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ["packaging"]
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"]
    if extra:
        lines += setup["options.extras_require"][extra]
    found = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        wanted = Requirement(line)
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(line)
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            found.append(f"{line} (is {version})")
    project = importlib.util.find_spec("parallel")
    if project is None or Path(project.origin or "/").parent.parent != ROOT:
        found.append("tessera (this directory)")
    return found


if __name__ == "__main__":
    lacking = missing(sys.argv[1] if len(sys.argv) > 1 else None)
    print(", ".join(lacking))
    sys.exit(bool(lacking))
