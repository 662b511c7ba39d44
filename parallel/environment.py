"""Environment variables of this project: every name there is, and mistyped ones refused."""

from __future__ import annotations

import re
from collections.abc import Mapping

from parallel.errors import ConfigError, did_you_mean

PREFIX = "TESSERA_"
API_KEY = "TESSERA_API_KEY"
CACHE = "TESSERA_CACHE"
ENDED = "TESSERA_ENDED"
OUTPUTS = "TESSERA_OUTPUTS"
RUN_FOLDER = "TESSERA_RUN_FOLDER"
KNOWN = {
    API_KEY: "the server's key",
    CACHE: "where converted models and built operators lie",
    ENDED: "when the server before a requeued job's died, in seconds since 1970",
    OUTPUTS: "where runs make their folders; empty: nowhere",
    RUN_FOLDER: "the folder of this run, which a launcher tells the ranks that it starts",
}
"""Names with what they say."""
_OF_KUBERNETES = re.compile(
    r"_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?"
)
"""How the names end that Kubernetes makes of each Service, which may be called tessera."""


def check_environment(environment: Mapping[str, str]) -> None:
    """Raises `ConfigError` for a variable with the project's prefix that nothing reads."""
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in KNOWN and not _is_of_kubernetes(name):
            raise ConfigError(
                f"unknown environment variable {name}{did_you_mean(name, KNOWN)}; "
                f"known: {', '.join(KNOWN)}; unset it or correct its name"
            )


def _is_of_kubernetes(name: str) -> bool:
    found = _OF_KUBERNETES.search(name)
    return found is not None and found.end() == len(name)
