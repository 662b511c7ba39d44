"""The table of known devices: each with its driver's names for it and the link among its like."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parallel.errors import HardwareError
from parallel.hardware.device_fields import DEVICE_KEYS, read_device_type
from parallel.hardware.device_type import DeviceType
from parallel.hardware.fields import Fields, read_yaml
from parallel.hardware.link import Link
from parallel.hardware.link_fields import read_link


@dataclass(frozen=True)
class KnownDevice:
    """A device type, the names that its driver gives it, and the link among its like."""

    type: DeviceType
    driver_names: tuple[str, ...] = ()
    link: Link | None = None


def read_device(value: object, where: str, name: str | None = None) -> KnownDevice:
    """A device type from its mapping; `name` stands in for a missing `name` key."""
    fields = Fields(value, where, (*DEVICE_KEYS, "driver_names", "link"))
    link = read_link(fields.raw("link"), f"{where}.link") if "link" in fields else None
    return KnownDevice(read_device_type(fields, name), fields.texts("driver_names"), link)


def known_devices(directory: Path) -> dict[str, KnownDevice]:
    """The device types described in `directory`/*.yaml, each by its file's name.

    A device's `link` may be the name of another one: the same wires and switches join them."""
    paths = sorted(directory.glob("*.yaml"))
    documents = {path.stem: read_yaml(path) for path in paths}
    known = {}
    for path in paths:
        document = documents[path.stem]
        if isinstance(document, dict) and isinstance(document.get("link"), str):
            other = documents.get(document["link"])
            if not isinstance(other, dict) or not isinstance(other.get("link"), dict):
                raise HardwareError(
                    f"{path}.link: no device type '{document['link']}' here that describes a link"
                )
            document = {**document, "link": other["link"]}
        known[path.stem] = read_device(document, str(path), path.stem)
    return known
