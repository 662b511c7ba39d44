"""Two hosts on this machine: namespaces with addresses, names, processes and /dev/shm of their own,
joined by a cable with a delay."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile

from tests.commands import ROOT, environment
from tests.slow_cable import TUN, cable, call, kernel_delays

_ADDRESSES = ("10.73.0.1", "10.73.0.2")
_PORT = "29511"
"""Free, since every namespace has ports of its own."""
_PROGRAMS = ("ip", "unshare", "mount", "taskset")
_CACHE = "/sys/devices/system/cpu/cpu0/cache"
_ENTER = f"""
set -e
hostname "$0"
mount -t tmpfs none /dev/shm
if [ -d {_CACHE} ]; then
    mount -t tmpfs none {_CACHE}
    mkdir {_CACHE}/index3
    echo 1024K > {_CACHE}/index3/size
fi
exec "$@"
"""
"""A host says that its cache is small, so that calibration has little to walk through."""


def why_not() -> str:
    """Why hosts can't be made here; empty where they can."""
    for program in _PROGRAMS:
        if shutil.which(program) is None:
            return f"the program {program} isn't installed"
    name = f"tessera-probe-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        return f"network namespaces aren't allowed here: {made.stderr.strip()}"
    try:
        entered = subprocess.run(_enter(name, name, 0, "true"), capture_output=True, text=True)
        if entered.returncode != 0:
            return f"namespaces of a host aren't allowed here: {entered.stderr.strip()}"
        if not kernel_delays(name) and not os.access(TUN, os.R_OK | os.W_OK):
            return f"nothing here delays packets: no netem in the kernel, no {TUN} to use"
    finally:
        call("ip", "netns", "del", name)
    return ""


def _enter(namespace: str, host: str, number: int, *command: str) -> list[str]:
    """The command as a process of that host, on one core; all of its processes end with it."""
    cores = sorted(os.sched_getaffinity(0))
    core = str(cores[number % len(cores)])
    own = ("--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    inside = ("sh", "-c", _ENTER, host, *command)
    return ["ip", "netns", "exec", namespace, "unshare", *own, "taskset", "-c", core, *inside]


@dataclass(frozen=True)
class TwoHosts:
    """Names of the network namespaces, of the hosts in them too."""

    names: tuple[str, str]

    def torchrun(self, *command: str, seconds: float = 120.0) -> str:
        """One rank on each, rank 0 on the first, run to their end; what the first printed."""
        end = time.monotonic() + seconds
        with contextlib.ExitStack() as stack:
            outputs = [stack.enter_context(TemporaryFile("w+")) for _ in self.names]
            ranks = []
            for number, (name, output) in enumerate(zip(self.names, outputs, strict=True)):
                words = (
                    *(sys.executable, "-m", "launch.on_node", "--nnodes", "2"),
                    *("--nproc-per-node", "1", "--node-rank", str(number)),
                    *("--master-addr", _ADDRESSES[0], "--master-port", _PORT, *command),
                )
                rank = subprocess.Popen(
                    _enter(name, name, number, *words),
                    cwd=ROOT,
                    env=environment(OMP_NUM_THREADS="1"),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                stack.callback(_end, rank)
                ranks.append(rank)
            for rank in ranks:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    rank.wait(timeout=max(0.0, end - time.monotonic()))
            printed = []
            for output in outputs:
                output.seek(0)
                printed.append(output.read())
            codes = [rank.poll() for rank in ranks]
            assert codes == [0, 0], f"exit codes {codes} (None: too slow): {printed}"
            return printed[0]


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


@contextmanager
def two_hosts(delay_ms: float) -> Iterator[TwoHosts]:
    """`delay_ms` each way. Nothing of them is left in the end."""
    mark = secrets.token_hex(3)
    names = (f"tessa-{mark}", f"tessb-{mark}")
    with contextlib.ExitStack() as stack:
        for name in names:
            call("ip", "netns", "add", name)
            stack.callback(call, "ip", "netns", "del", name)
            call("ip", "-n", name, "link", "set", "lo", "up")
        stack.enter_context(cable(names, names, delay_ms))
        for name, own, other in zip(names, _ADDRESSES, reversed(_ADDRESSES), strict=True):
            call("ip", "-n", name, "addr", "add", own, "peer", other, "dev", name)
            call("ip", "-n", name, "link", "set", name, "up")
        yield TwoHosts(names)
