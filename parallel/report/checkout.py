"""The git commit of a checkout, and whether its files are still as committed."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_GIT_SECONDS = 2.0


@dataclass(frozen=True)
class Commit:
    """`modified`: whether tracked files differ from it; None where git couldn't say."""

    hash: str
    modified: bool | None

    def to_json(self) -> dict[str, str | bool | None]:
        return {"hash": self.hash, "modified": self.modified}


def read_commit(root: Path) -> Commit | None:
    """None where `root` is no checkout, or one that can't be read. Without git the commit is known
    all the same: it is read from files."""
    try:
        found = _head(root)
    except (OSError, UnicodeDecodeError):
        return None
    return None if found is None else Commit(found, _modified(root))


def _head(root: Path) -> str | None:
    """Of a checkout, or of one of its work trees, whose `.git` is a file that names a folder."""
    own = root / ".git"
    if own.is_file():
        own = root / own.read_text().removeprefix("gitdir:").strip()
    if not own.is_dir():
        return None
    head = (own / "HEAD").read_text().strip()
    if not head.startswith("ref:"):
        return _checked(head)
    name = head.removeprefix("ref:").strip()
    common = own / "commondir"
    shared = own / common.read_text().strip() if common.is_file() else own
    for folder in (own, shared):
        if (folder / name).is_file():
            return _checked((folder / name).read_text().strip())
    packed = shared / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((_checked(line.split()[0]) for line in lines if line.endswith(f" {name}")), None)


def _checked(text: str) -> str | None:
    return text if _HASH.fullmatch(text) else None


def _modified(root: Path) -> bool | None:
    """git's own locks are left alone: others may work in the same checkout."""
    command = ["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain"]
    try:
        done = subprocess.run(
            [*command, "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bool(done.stdout.strip()) if done.returncode == 0 else None
