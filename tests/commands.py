"""Launchers as users start them: real processes, their exit codes and what they print."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_RANK_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GLOO_SOCKET_IFNAME",
)


def environment(**values: str) -> dict[str, str]:
    """This environment with the interpreter's folder on PATH, as in an activated one."""
    kept = {k: v for k, v in os.environ.items() if k not in _RANK_VARIABLES}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": path, **values}


def command(launcher: str, *arguments: str, torchrun: int | None = None) -> list[str]:
    script = str(ROOT / "launch" / f"{launcher}.py")
    if torchrun is None:
        return [sys.executable, script, *arguments]
    ranks = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(torchrun)]
    return [*ranks, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", script, *arguments]


def run(
    launcher: str, *arguments: str, torchrun: int | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(launcher, *arguments, torchrun=torchrun),
        env=environment(),
        cwd=cwd or ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
