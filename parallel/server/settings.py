"""What rank 0 tells the front process, as one JSON object on its standard input."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from parallel.units import MIB


@dataclass(frozen=True)
class FrontSettings:
    """`router_key` is the hexadecimal key that the leaders use too, `router_host` the address of
    this host that they can reach. Port 0 takes a free one. `provenance` goes into reports."""

    model_directory: str
    model_name: str
    router_key: str = field(repr=False)
    replicas: int = 1
    router_host: str = "127.0.0.1"
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 8 * MIB
    drain_seconds: float = 20.0
    health_seconds: float = 10.0
    report_seconds: float = 60.0
    provenance: dict[str, Any] | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> FrontSettings:
        return cls(**json.loads(text))
