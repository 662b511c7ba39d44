"""`torchrun launch/serve.py +tp=4`: an OpenAI-compatible server over a model split across ranks."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.entry import EXIT_DONE, run_command, under_torchrun
from launch.running import start_or_join
from launch.schema import ServeCommand
from parallel.environment import API_KEY
from parallel.errors import ConfigError
from parallel.planner.plan import Plan
from parallel.text.tokenizer import Tokenizer


def main(settings: ServeCommand) -> int:
    check_keys(settings)
    _check_restarts(settings)
    api_key(settings)
    return start_or_join(
        settings,
        Path(__file__).resolve(),
        partial(_rank, settings),
        _check,
        after_signal=EXIT_DONE,
        restarts=settings.restarts,
    )


def check_keys(settings: ServeCommand) -> None:
    """Raises `ConfigError` for what can be known of a server's own keys before it starts."""
    if not 0 <= settings.port <= 65535:
        raise ConfigError(f"port={settings.port} is out of range; give 0 (any free) to 65535")
    if settings.drain_seconds < 0:
        raise ConfigError(f"drain_seconds={settings.drain_seconds} is negative; give 0 or more")
    if settings.restarts < 0:
        raise ConfigError(f"restarts={settings.restarts} is negative; give 0 or more")


def _check_restarts(settings: ServeCommand) -> None:
    """Ranks that torchrun started are started anew by it, or not at all."""
    allowed = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if under_torchrun() and settings.restarts not in (0, int(allowed)):
        raise ConfigError(
            f"restarts={settings.restarts}: torchrun started these ranks, and starts them anew "
            f"{allowed} times; give it --max-restarts {settings.restarts} in place of the key"
        )


def api_key(settings: ServeCommand) -> str | None:
    """From the file, else from the environment; never from the command line."""
    if settings.api_key_file is None:
        return os.environ.get(API_KEY) or None
    try:
        key = Path(settings.api_key_file).read_text().strip()
    except OSError as error:
        raise ConfigError(f"api_key_file={settings.api_key_file}: {error.strerror}") from None
    if not key:
        raise ConfigError(f"api_key_file={settings.api_key_file} is empty; write the key into it")
    return key


def _check(directory: Path, plan: Plan) -> None:
    Tokenizer.load(directory)


def _rank(settings: ServeCommand, directory: Path, plan: Plan) -> int:
    # Here torch comes in: the process that only plans and starts ranks does without.
    from launch.rank import run_rank
    from launch.serve_host import ServeHost

    key = api_key(settings)
    return run_rank(settings, directory, plan, lambda: ServeHost(settings, directory, plan, key))


if __name__ == "__main__":
    run_command("serve", ServeCommand, main)
