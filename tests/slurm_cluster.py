"""A Slurm cluster of two nodes on this machine: its own folder, free ports, no system file."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "scontrol")
NODES = ("n1", "n2")
_CPUS, _MEMORY_MIB, _GPUS = 2, 8000, 2
_START_SECONDS = 30.0


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if _which(name) is None]


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass(frozen=True)
class SlurmCluster:
    folder: Path
    environment: Mapping[str, str]

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command, env=dict(self.environment), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, …"""
        shown = self.call("scontrol", "--oneliner", "show", "job", job)
        return dict(w.split("=", 1) for w in shown.split() if "=" in w)["JobState"]

    def wait(self, job: str, *states: str, seconds: float = 120.0) -> str:
        end = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            assert time.monotonic() < end, f"job {job} is {state}, not {states}"
            time.sleep(0.2)
        return state


@contextmanager
def slurm_cluster() -> Iterator[SlurmCluster]:
    """Ends everything it started."""
    with TemporaryDirectory(prefix="tessera-slurm-", dir="/tmp") as name, ExitStack() as stack:
        folder = Path(name)
        socket_file = folder / "munge.socket"
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        munged = [
            *(str(_which("munged")), "--foreground", "--force", f"--socket={socket_file}"),
            *(f"--key-file={key}", f"--pid-file={folder / 'munged.pid'}"),
            *(f"--seed-file={folder / 'munged.seed'}", f"--log-file={folder / 'munged.log'}"),
        ]
        stack.enter_context(_daemon(munged, os.environ, folder / "munged.out"))
        _until(socket_file.exists, folder, "munged")
        _configure(folder, socket_file)
        environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        cluster = SlurmCluster(folder, environment)
        stack.enter_context(
            _daemon([str(_which("slurmctld")), "-D"], environment, folder / "slurmctld.out")
        )
        for node in NODES:
            (folder / node).mkdir()
            command = [str(_which("slurmd")), "-D", "-N", node]
            stack.enter_context(_daemon(command, environment, folder / f"{node}.out"))
        _until(lambda: _idle(cluster), folder, "nodes")
        yield cluster
        subprocess.run(["scancel", "--full", "--user=root"], env=environment, check=False)


def _idle(cluster: SlurmCluster) -> bool:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--format=%T"],
        env=dict(cluster.environment),
        capture_output=True,
        text=True,
    )
    return done.stdout.split() == ["idle"] * len(NODES)


@contextmanager
def _daemon(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[None]:
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=dict(environment), stdout=out, stderr=out, start_new_session=True
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until(done: object, folder: Path, what: str) -> None:
    assert callable(done)
    end = time.monotonic() + _START_SECONDS
    while not done():
        if time.monotonic() > end:
            logs = "".join(f.read_text()[-1500:] for f in sorted(folder.glob("*.out")))
            raise AssertionError(f"{what} didn't come up:\n{logs}")
        time.sleep(0.1)


def _configure(folder: Path, socket_file: Path) -> None:
    ports = _free_ports(2 + len(NODES))
    host = socket.gethostname()
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={ports[0]}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={socket_file}",
        "CryptoType=crypto/munge",
        f"StateSaveLocation={folder / 'state'}",
        f"SlurmdSpoolDir={folder}/%n",
        f"SlurmctldPidFile={folder / 'slurmctld.pid'}",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder / 'slurmctld.log'}",
        f"SlurmdLogFile={folder}/slurmd-%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU_Memory",
        "MpiDefault=none",
        "ReturnToService=2",
        "GresTypes=gpu",
        "KillWait=30",
        "MinJobAge=300",
        "JobRequeue=1",
        "SchedulerParameters=sched_interval=1,batch_sched_delay=0",
    ]
    for number, node in enumerate(NODES):
        lines.append(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2 + number]} "
            f"CPUs={_CPUS} RealMemory={_MEMORY_MIB} Gres=gpu:{_GPUS} State=UNKNOWN"
        )
    lines.append("PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    (folder / "state").mkdir()
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    gres = f"NodeName={','.join(NODES)} Name=gpu File=/dev/tty[1-{_GPUS}]\n"
    (folder / "gres.conf").write_text(gres)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in held:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in held]
