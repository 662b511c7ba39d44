"""`python launch/fetch.py [model=FILE.gguf]`: makes a model ready and prints its directory.

Without `model=` the default one is downloaded and converted, once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from parallel.conversion.resolve import resolve_model
from parallel.environment import check_environment
from parallel.errors import ConfigError, UserError, did_you_mean

EXIT_DONE, EXIT_USER = 0, 2


def main(arguments: list[str]) -> int:
    try:
        check_environment(os.environ)
        print(resolve_model(_model(arguments)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    return EXIT_DONE


def _model(arguments: list[str]) -> str | None:
    model = None
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        if key != "model" or not value:
            near = did_you_mean(key, ("model",))
            raise ConfigError(
                f"unknown argument '{argument}'{near}; known: model=DIRECTORY or FILE.gguf"
            )
        model = value
    return None if model == "null" else model


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
