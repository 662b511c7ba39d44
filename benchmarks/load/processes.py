"""The processes of a system: started together, their memory sampled, ended without a trace."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from parallel.units import KIB

_SHARED = Path("/dev/shm")
_SAMPLE_SECONDS = 2.0
_END_SECONDS = 30.0


def free_port() -> int:
    """One that nothing listens at now, on the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Family:
    """A process and all that it starts, with what they print in `log`."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path, cwd: Path):
        self.log = log
        self._shared: set[Path] = set()
        self._known: dict[int, psutil.Process] = {}
        self._peak_bytes = 0
        self._ended = threading.Event()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def alive(self) -> bool:
        return self.process.poll() is None

    def members(self) -> list[psutil.Process]:
        try:
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def take_peak_bytes(self) -> int:
        """Most resident memory of all members since the last call, shared pages counted once."""
        self._look()
        peak, self._peak_bytes = self._peak_bytes, 0
        return peak

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        """Asks the first process, then kills whoever is left; removes the shared memory that they
        mapped, which some leave behind."""
        self._look()
        self._ended.set()
        self._sampler.join()
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        left = [process for process in self._known.values() if process.is_running()]
        _, stubborn = psutil.wait_procs(left, timeout=5.0)
        for process in stubborn:
            process.kill()
        psutil.wait_procs(stubborn, timeout=5.0)
        for path in self._shared:
            path.unlink(missing_ok=True)

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        members = self.members()
        self._known |= {member.pid: member for member in members}
        self._peak_bytes = max(self._peak_bytes, sum(resident_bytes(m.pid) for m in members))
        self._shared.update(_mapped_shared(member.pid for member in members))


def resident_bytes(pid: int) -> int:
    """Proportional set size: a page that n processes share counts as 1/n; 0 for one that ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = [int(line.split()[1]) * KIB for line in lines if line.startswith("Pss:")]
    return found[0] if found else 0


def _mapped_shared(pids: Iterable[int]) -> set[Path]:
    """Files under /dev/shm that these processes have mapped and that still have a name."""
    found = set()
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        names = (line.split(maxsplit=5)[-1] for line in lines if f" {_SHARED}/" in line)
        found |= {Path(name) for name in names if not name.endswith("(deleted)")}
    return found
