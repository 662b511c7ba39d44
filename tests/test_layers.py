"""The architecture's rules: imports only go down, no torch below the line, small modules."""

from __future__ import annotations

import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
MOST_LINES = 400
USUAL_LINES = 200
SOURCES = sorted(
    path
    for folder in ("parallel", "launch", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)


def contract(name: str, key: str) -> list[str]:
    """A list in setup.cfg's import contracts."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config[f"importlinter:contract:{name}"][key].split()


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_import_contracts() -> None:
    code = "from importlinter.cli import lint_imports_command as lint; lint()"
    done = python(code, "--no-cache")
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout + done.stderr


def test_the_contracts_name_every_package() -> None:
    layers = {w.strip("()") for w in contract("layers", "layers") if w != "|"}
    found = {p.stem for p in (ROOT / "parallel").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert found - layers <= {"__init__", "__pycache__"}


IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), name + "."):
        importlib.import_module(found.name)
        print(found.name)
heavy = {"torch", "deepspeed", "transformers", "accelerate"} & set(sys.modules)
sys.exit(f"imported: {sorted(heavy)}" if heavy else 0)
"""


def test_nothing_below_the_line_imports_torch() -> None:
    """Tried, beside the contract: a library could bring torch in."""
    below = contract("torch-line", "source_modules")
    done = python(IMPORT_ALL, *below)
    assert done.returncode == 0, done.stderr
    assert {"parallel.planner.plan", "parallel.layout.heads"} <= set(done.stdout.split())


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_modules_are_small() -> None:
    too_long = {str(p.relative_to(ROOT)): lines(p) for p in SOURCES if lines(p) >= MOST_LINES}
    assert not too_long, "two things in one file: cut them apart"
    assert median(filter(None, map(lines, SOURCES))) < USUAL_LINES
