"""How long OpenMP's threads look for each other before they sleep.

GNU's threads spin for milliseconds. That costs nothing while each has a core; once another program
takes one, a thread that spins keeps the core that the thread it waits for could run on: some 30
times slower steps by default. So few turns that a thread sleeps between two products cost a waking
each. The turns here bridge what lies between products (docs/benchmarks.md has the measurements).
"""

from __future__ import annotations

from collections.abc import MutableMapping

SPINS = "8000"
_CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """For this process, where torch isn't loaded yet, and those that it starts; a user's own choice
    stands (libgomp's manual, "Environment Variables")."""
    if not any(name in environment for name in _CHOSEN):
        environment["GOMP_SPINCOUNT"] = SPINS
