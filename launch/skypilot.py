"""A SkyPilot task: one YAML document for `sky launch`, on whatever cloud has the devices.

Fields: docs.skypilot.co, "SkyPilot YAML".
"""

from __future__ import annotations

from typing import Any

import yaml  # type: ignore[import-untyped]

from launch.kubernetes import Deployed, shell_line
from launch.schema import SkyPilotKeys
from parallel.units import GIB

_RENDEZVOUS_PORT = "29500"
_NAMES = {"a100": "A100-80GB", "a100_40gb": "A100"}
"""Where SkyPilot's name for a device isn't ours in capitals."""


def task(deployed: Deployed, device: str, keys: SkyPilotKeys) -> str:
    """`device`: the type's name in our table; `keys.accelerator` is used in its place."""
    needed = deployed.needed
    asked: dict[str, Any] = {
        "cpus": f"{needed.cores}+",
        "memory": f"{-(-needed.memory_bytes // GIB)}+",
        "image_id": f"docker:{keys.image}",
    }
    if needed.gpus:
        asked["accelerators"] = {
            keys.accelerator or _NAMES.get(device, device.upper()): needed.gpus
        }
    if deployed.serves:
        asked["ports"] = deployed.port
    words = deployed.command.words("python", "$SKYPILOT_NODE_RANK", "$HEAD", _RENDEZVOUS_PORT)
    lines = (
        'HEAD=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)',
        f"cd {keys.working_dir}",
        f"exec {shell_line(words)}",
    )
    document = {
        "name": deployed.name,
        "num_nodes": needed.nodes,
        "resources": asked,
        "run": "\n".join(lines) + "\n",
    }
    return str(yaml.safe_dump(document, sort_keys=False, width=1000))
