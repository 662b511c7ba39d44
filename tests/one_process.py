"""Modules of tests that start no ranks: they may run beside those that do.

Ranks want the machine's cores. All other tests, those of a new module too, run one after the other.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

ONE_PROCESS = frozenset(
    [
        "architecture",
        "attention",
        "attention_cuda",
        "bad_requests",
        "block_moves",
        "budget",
        "cache_formats",
        "calibration",
        "collective_ops",
        "compiled",
        "configs",
        "conversion",
        "degrees",
        "devices",
        "docs",
        "dry_run",
        "fairness",
        "front",
        "graphs",
        "growth",
        "guards",
        "hardware",
        "inputs",
        "instruments",
        "layers",
        "layout",
        "links",
        "load",
        "manifests",
        "mixed",
        "native_kernels",
        "openmp",
        "pages",
        "pipeline",
        "placing",
        "plan_accuracy",
        "plan_command",
        "planner",
        "prefix_cache",
        "probe",
        "products",
        "queueing",
        "report",
        "router",
        "sampling",
        "scheduler",
        "scheduling_course",
        "scheduling_room",
        "search",
        "server",
        "stage_search",
        "submit",
        "symmetric_memory",
        "targets",
        "tensors",
        "text",
        "trade_off",
    ]
)


class RanksTogether(LoadScopeScheduling):  # type: ignore[misc]
    """All tests with ranks go to one of pytest-xdist's workers, others to whoever is free."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return nodeid if Path(module).stem.removeprefix("test_") in ONE_PROCESS else "ranks"


def check_for_ranks(items: list[pytest.Item]) -> None:
    """Raises `UsageError` when a module that is listed here wants ranks after all."""
    for item in items:
        name = item.path.stem.removeprefix("test_")
        if name in ONE_PROCESS and "pool" in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{item.nodeid} has ranks: take {name} from ONE_PROCESS")
