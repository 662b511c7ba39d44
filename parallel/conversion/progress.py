"""Progress on stderr: a bar on a terminal, one line elsewhere."""

from __future__ import annotations

import sys

from tqdm import tqdm


def say(message: str, enabled: bool = True) -> None:
    if enabled:
        print(message, file=sys.stderr, flush=True)


def byte_bar(total_bytes: int, what: str, enabled: bool = True) -> tqdm[None]:
    """A bar that counts bytes; call `update(n)`. Use it as a context manager."""
    on_terminal = enabled and sys.stderr.isatty()
    if not on_terminal:
        say(f"{what} ({total_bytes / 1024**2:.0f} MiB)", enabled)
    return tqdm(
        total=total_bytes,
        desc=what,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        file=sys.stderr,
        disable=not on_terminal,
    )


def count_bar(total: int, what: str) -> tqdm[None]:
    """A bar that counts things; call `update(n)`. Use it as a context manager."""
    on_terminal = sys.stderr.isatty()
    if not on_terminal:
        say(f"{what} ({total})")
    return tqdm(total=total, desc=what, file=sys.stderr, disable=not on_terminal)
