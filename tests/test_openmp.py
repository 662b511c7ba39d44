"""How OpenMP's threads wait for each other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from launch.openmp import SPINS, wait_briefly
from tests.commands import ROOT, environment


@pytest.mark.parametrize("chosen", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_a_users_choice_stands(chosen: str) -> None:
    given = {chosen: "active"}
    wait_briefly(given)
    assert given == {chosen: "active"}


def test_torch_learns_it_with_any_command() -> None:
    """That importing the commands' entry doesn't load torch is half of it."""
    program = """
import sys
from dataclasses import dataclass
from launch.entry import run_command
@dataclass
class Nothing:
    pass
assert "torch" not in sys.modules
sys.argv = ["plan.py", "--help"]
try:
    run_command("plan", Nothing, lambda settings: 0)
except SystemExit:
    import torch
"""
    given = environment(OMP_DISPLAY_ENV="verbose")
    del given["GOMP_SPINCOUNT"]  # the tests' own
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=given,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    if "OPENMP DISPLAY ENVIRONMENT" not in done.stderr or "GOMP" not in done.stderr:
        pytest.skip("torch's OpenMP here isn't GNU's")
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in done.stderr
