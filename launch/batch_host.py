"""Rank 0 of `generate`: a router and the batch in threads beside its engine."""

from __future__ import annotations

import secrets
from pathlib import Path
from threading import Thread
from typing import Any

from launch.offline import Batch
from launch.rank import Host, RouterAt
from parallel.collectives.addresses import own_address
from parallel.errors import RunError
from parallel.requests.router import Router
from parallel.requests.wire import listen


class BatchHost(Host):
    def __init__(self, batch: Batch, replicas: int, output: Path):
        self._batch, self._output = batch, output
        self._key = secrets.token_bytes(16)
        self._listener = listen(own_address(), self._key)
        self._router = Router(self._listener, replicas, on_lost=lambda _: None)
        self._failure: RunError | None = None

    def router(self) -> RouterAt:
        return self._listener.address, self._key

    def loaded(self, report: dict[str, Any]) -> None:
        Thread(target=self._work, daemon=True, name="batch").start()

    def _work(self) -> None:
        try:
            self._router.wait_ready()
            self._batch.run(self._router)
        except RunError as error:
            self._failure = error
        self._router.stop()

    def report(self, report: dict[str, Any], file: str | None) -> None:
        if self._failure is not None:
            raise self._failure
        self._batch.write(self._output)
        super().report(report, file)
