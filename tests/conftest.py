"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from launch.openmp import wait_briefly
from tests.rank_pool import RankPool

# Runs that tests start make no folders in the tree.
os.environ.setdefault("TESSERA_OUTPUTS", "")
# Nor do their threads keep each other from the cores.
wait_briefly(os.environ)


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    made = RankPool(4)
    yield made
    made.close()
