"""A cable between two network namespaces that delays every packet.

It is a pair of Ethernet devices with the kernel's own delay (netem) where the kernel has it; else
two TUN devices and a thread that carries packets from one to the other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

TUN = "/dev/net/tun"
_MTU = 60000
"""Of TUN devices: the fewer packets, the less the thread has to do."""
_QUEUE_PACKETS = "10000"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_IDLE_SECONDS = 0.05


def call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def kernel_delays(namespace: str) -> bool:
    """Whether the kernel has netem, tried on the namespace's loopback."""
    tried = ("tc", "-n", namespace, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    try:
        if subprocess.run(tried, capture_output=True).returncode != 0:
            return False
    except FileNotFoundError:
        return False
    call("tc", "-n", namespace, "qdisc", "del", "dev", "lo", "root")
    return True


@contextmanager
def cable(namespaces: Sequence[str], devices: Sequence[str], delay_ms: float) -> Iterator[None]:
    """`devices[i]` is in `namespaces[i]`, not yet up; `delay_ms` is each way's. Devices end with
    their namespaces."""
    if kernel_delays(namespaces[0]):
        _join_in_kernel(namespaces, devices, delay_ms)
        yield
    else:
        with _TunCable(devices, delay_ms / 1e3):
            for namespace, device in zip(namespaces, devices, strict=True):
                call("ip", "link", "set", device, "netns", namespace)
                more = ("mtu", str(_MTU), "txqueuelen", _QUEUE_PACKETS)
                call("ip", "-n", namespace, "link", "set", device, *more)
            yield


def _join_in_kernel(namespaces: Sequence[str], devices: Sequence[str], delay_ms: float) -> None:
    (here, there), (first, second) = namespaces, devices
    pair = ("type", "veth", "peer", "name", second, "netns", there)
    call("ip", "link", "add", first, "netns", here, *pair)
    delay = ("root", "netem", "delay", f"{delay_ms}ms", "limit", _QUEUE_PACKETS)
    for namespace, device in zip(namespaces, devices, strict=True):
        call("tc", "-n", namespace, "qdisc", "add", "dev", device, *delay)


class _TunCable:
    """Packets of either device come out of the other one `delay_seconds` later."""

    def __init__(self, devices: Sequence[str], delay_seconds: float):
        self._ends = [_tun(device) for device in devices]
        self._delay = delay_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True, name="cable")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """The devices end with their descriptors."""
        self._stop.set()
        self._thread.join()
        for end in self._ends:
            os.close(end)

    def _carry(self) -> None:
        others = dict(zip(self._ends, reversed(self._ends), strict=True))
        under_way: deque[tuple[float, int, bytes]] = deque()
        while not self._stop.is_set():
            wait = _IDLE_SECONDS
            if under_way:
                wait = max(0.0, under_way[0][0] - time.monotonic())
            for end in select.select(self._ends, [], [], wait)[0]:
                # A device that is down has nothing, and loses what comes.
                with contextlib.suppress(OSError):
                    packet = os.read(end, _MTU)
                    under_way.append((time.monotonic() + self._delay, others[end], packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, to, packet = under_way.popleft()
                with contextlib.suppress(OSError):
                    os.write(to, packet)


def _tun(name: str) -> int:
    """A descriptor of a new device; both stay together when the device changes its namespace."""
    end = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return end
