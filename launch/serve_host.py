"""Rank 0 of `serve`: the front process beside it, from the bound port to the drained end."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from threading import Thread
from typing import Any

from launch.provenance import provenance
from launch.rank import Host, RouterAt, leave
from launch.running import show_report
from launch.schema import ServeCommand
from parallel.collectives.addresses import own_address, reached_at
from parallel.devices.process import status_bytes
from parallel.errors import RunError
from parallel.planner.plan import Plan
from parallel.server.process import spawn_front
from parallel.server.settings import FrontSettings


class ServeHost(Host):
    def __init__(self, settings: ServeCommand, directory: Path, plan: Plan, key: str | None):
        self._key = secrets.token_bytes(16)
        self._has_api_key = key is not None
        self._name = settings.served_model_name or plan.layout.spec.name
        self._drain_seconds = settings.drain_seconds
        self._loaded = False
        self._restart: dict[str, Any] = {}
        self._front = spawn_front(
            FrontSettings(
                model_directory=str(directory),
                model_name=self._name,
                router_key=self._key.hex(),
                replicas=plan.layout.degrees.dp,
                router_host=own_address(),
                host=settings.host,
                port=settings.port,
                api_key=key,
                drain_seconds=settings.drain_seconds,
                provenance=provenance(settings, plan.cluster).to_json(),
            )
        )
        self._host, self._port = self._front.wait_listening()

    def router(self) -> RouterAt:
        return self._front.router_address, self._key

    def beside_bytes(self) -> int:
        return status_bytes("VmRSS", Path(f"/proc/{self._front.pid}"))

    def loaded(self, report: dict[str, Any]) -> None:
        """Predicted against measured so far; the address as soon as the front serves."""
        show_report(report, None)
        self._loaded = True
        Thread(target=self._announce, daemon=True, name="announce").start()

    def _announce(self) -> None:
        try:
            self._restart = self._front.wait_ready()
        except RunError:
            # The front went away before it served: the leader's channel says so.
            return
        name = reached_at(self._host)
        host = f"[{name}]" if ":" in name else name
        address = f"http://{host}:{self._port}"
        body = {
            "model": self._name,
            "messages": [{"role": "user", "content": "What is the capital of Japan?"}],
            "max_tokens": 32,
            "temperature": 0,
        }
        key = '-H "Authorization: Bearer $TESSERA_API_KEY" ' if self._has_api_key else ""
        print(
            f"try: curl {address}/v1/chat/completions {key}-H 'Content-Type: application/json' "
            f"-d '{json.dumps(body)}'"
        )
        if (seconds := self._restart["seconds"]) is not None:
            loading = self._restart["loading_seconds"]
            print(f"back {seconds:.1f} s after a rank's death, {loading:.1f} s of it loading")
        print(f"ready {address}", flush=True)

    def report(self, report: dict[str, Any], file: str | None) -> None:
        super().report({**report, "restart": self._restart}, file)

    def terminate(self, signal_name: str) -> None:
        if not self._loaded:
            # Nothing runs that could be finished, and loading may take longer than torchrun waits.
            leave(f"stopped by {signal_name} before it served")
            return
        print(f"{signal_name}: finishing what runs", file=sys.stderr, flush=True)
        self._front.drain()

    def close(self) -> None:
        if self._front.wait(timeout=self._drain_seconds + 5) is None:
            self._front.terminate()
