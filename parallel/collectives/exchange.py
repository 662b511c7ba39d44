"""Small facts between the ranks of a job, over its key-value store."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store


class Exchange:
    """Values are JSON. Waiting ends with torch's own error after the store's time-out."""

    def __init__(self, store: Store, rank: int, world_size: int):
        self.store, self.rank, self.world_size = store, rank, world_size

    def put(self, key: str, value: Any) -> None:
        self.store.set(key, json.dumps(value))

    def get(self, key: str, timeout: timedelta | None = None) -> Any:
        """Waits until somebody has put it."""
        if timeout is not None:
            self.store.wait([key], timeout)
        return json.loads(self.store.get(key))

    def find(self, key: str) -> Any | None:
        """None where nobody has put it yet."""
        return self.get(key) if self.store.check([key]) else None

    def collect(self, key: str, value: Any, ranks: Iterable[int] | None = None) -> list[Any]:
        """Everybody's value, on every rank."""
        self.put(f"{key}/{self.rank}", value)
        return [self.get(f"{key}/{r}") for r in (ranks or range(self.world_size))]

    def barrier(self, key: str, ranks: Iterable[int], timeout: timedelta | None = None) -> None:
        """Waits for `ranks`; a key serves once."""
        self.store.set(f"{key}/{self.rank}", "here")
        keys = [f"{key}/{r}" for r in ranks]
        if timeout is None:
            self.store.wait(keys)
        else:
            self.store.wait(keys, timeout)

    def leave(self) -> None:
        """The last use of the store, which may live in rank 0's process: rank 0 stays until all
        others have left, and they wait for nobody."""
        if self.rank == 0:
            self.store.wait([f"left/{r}" for r in range(1, self.world_size)])
        else:
            self.store.set(f"left/{self.rank}", "")
