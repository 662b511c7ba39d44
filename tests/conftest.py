"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from parallel.devices.native.library import load
from tests.one_process import RanksTogether, check_for_ranks
from tests.rank_pool import RankPool

# The same cases in every run, and none fails for being slow.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")
# Runs that tests start make no folders in the tree.
os.environ.setdefault("TESSERA_OUTPUTS", "")
# Nor do their threads keep each other from the cores, which are shared here.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    check_for_ranks(items)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RanksTogether:
    return RanksTogether(config, log)


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    made = RankPool(4)
    yield made
    made.close()


@pytest.fixture(params=[False, True], ids=["vectors", "tiles"])
def tiles(request: pytest.FixtureRequest) -> Iterator[None]:
    """Native products by vectors alone, and by AMX's tiles."""
    load()
    if torch.ops.tessera_native.use_tiles(request.param) != request.param:
        pytest.skip("the processor has no AMX, or lends none")
    yield
    torch.ops.tessera_native.use_tiles(True)
