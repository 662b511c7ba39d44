"""Seconds of the parts of a model, where they are called."""

from __future__ import annotations

from typing import Any

from parallel.devices.base import Device, Timer


class Meter:
    """Device seconds by part, while it is on."""

    def __init__(self, device: Device):
        self.device, self.on = device, False
        self._timers: dict[str, list[Timer]] = {}

    def watch(self, owner: object, attribute: str, part: str) -> None:
        """Times each call of `owner.attribute` from now on."""
        call = getattr(owner, attribute)

        def timed(*arguments: Any) -> Any:
            if not self.on:
                return call(*arguments)
            timer = self.device.timer()
            timer.start()
            out = call(*arguments)
            timer.stop()
            self._timers.setdefault(part, []).append(timer)
            return out

        setattr(owner, attribute, timed)

    def take(self) -> dict[str, list[float]]:
        """Seconds of each call since the last time it was asked."""
        seconds = {part: [t.seconds() for t in timers] for part, timers in self._timers.items()}
        self._timers.clear()
        return seconds
