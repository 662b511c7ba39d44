"""Jobs under Slurm: the batch script of a plan, its submission, and what becomes of it.

The script is the whole of it: `submit=dry` prints what is submitted. It runs in the folder where it
was made, so that relative paths mean the same. One task per node starts torchrun; the first node of
the allocation has node rank 0, and with it rank 0 and the port.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from launch.entry import EXIT_DONE, EXIT_USER
from launch.job_command import JobCommand
from launch.job_resources import Resources
from launch.schema import SlurmKeys
from parallel.environment import ENDED
from parallel.errors import ConfigError, RunError

ROOT = Path(__file__).resolve().parent.parent
_POLL_SECONDS = 1.0
_LEAVING_SECONDS = 30
"""Between the end of the drain and Slurm's own end of a job."""
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")

_BODY = """\
cd {here} || exit {user}
export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{threads}}}
# Ranks meet at the first node: by its name where that resolves, else by the address Slurm has.
export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if ! getent hosts "$HEAD" > /dev/null; then
    HEAD=$(scontrol --oneliner show node "$HEAD" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
fi
export PORT=$((20000 + SLURM_JOB_ID % 20000))
echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, rank 0 on $HEAD"
{before}code=0
srun --mpi=none --kill-on-bad-exit=1 --ntasks-per-node=1 bash -c {task} || code=$?
{requeue}exit $code
"""
# When the start before this one ended, for the report.
_BEFORE = """\
ended={ended}
if [ -f "$ended" ]; then
    export {variable}=$(cat "$ended")
    rm -f "$ended"
fi
"""
# A user's error would come again; a job that a signal ended has drained, and ended well.
_REQUEUE = """\
again=${{SLURM_RESTART_COUNT:-0}}
if [ $code -ne {done} ] && [ $code -ne {user} ] && [ $again -lt {restarts} ]; then
    date +%s.%N > "$ended"
    echo "a rank died: job $SLURM_JOB_ID goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
"""


@dataclass(frozen=True)
class SlurmJob:
    """`name` and what it needs; `drain_seconds` are left to a server before its time ends. With
    `keeps_run` the run's folder is beside the job's log, the same however often it is queued."""

    name: str
    command: JobCommand
    needed: Resources
    keys: SlurmKeys
    folder: Path
    drain_seconds: float
    keeps_run: bool = False

    @property
    def log(self) -> str:
        """The file's pattern: %j is the job's number."""
        return str(self.folder / f"{self.name}-%j.log")

    def script(self) -> str:
        return "\n".join(["#!/bin/bash", *self._options(), "", self._body()])

    def _options(self) -> list[str]:
        keys, needed = self.keys, self.needed
        ahead = int(self.drain_seconds) + _LEAVING_SECONDS
        options = {
            "job-name": f"tessera-{self.name}",
            "nodes": needed.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": needed.cores,
            "gpus-per-node": needed.gpus or None,
            "mem": f"{needed.memory_mib}M",
            "time": keys.minutes,
            "partition": keys.partition,
            "account": keys.account,
            "qos": keys.qos,
            "signal": f"TERM@{ahead}",
            "output": self.log,
            "open-mode": "append",
        }
        lines = [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None]
        lines.append(f"#SBATCH --{'requeue' if keys.requeue else 'no-requeue'}")
        return lines + [f"#SBATCH {option}" for option in keys.options]

    def _body(self) -> str:
        """With `slurm.requeue` Slurm starts the job anew, else torchrun the ranks; not both."""
        command, before, requeue = self.command, "", ""
        if self.keys.requeue and command.restarts:
            restarts, command = command.restarts, replace(command, restarts=0)
            ended = shlex.quote(str(self.folder / self.name)) + "-$SLURM_JOB_ID.ended"
            before = _BEFORE.format(ended=ended, variable=ENDED)
            requeue = _REQUEUE.format(done=EXIT_DONE, user=EXIT_USER, restarts=restarts)
        words = command.words(sys.executable, "$SLURM_NODEID", "$HEAD", "$PORT", ROOT)
        shown = " ".join(w if w.startswith("$") else shlex.quote(w) for w in words)
        if self.keeps_run:
            # Quoted for Hydra within what is quoted for the shell.
            place = shlex.quote(str(self.folder / self.name).replace("'", r"\'"))
            shown += f""" "run_folder='"{place}"-$SLURM_JOB_ID'\""""
        threads = max(1, self.needed.cores // self.needed.ranks)
        return _BODY.format(
            here=shlex.quote(str(Path.cwd())),
            user=EXIT_USER,
            root=shlex.quote(str(ROOT)),
            threads=threads,
            task=shlex.quote(f"exec {shown}"),
            before=before,
            requeue=requeue,
        )


def submit(job: SlurmJob) -> str:
    """The job's number. Raises `ConfigError` without Slurm here, `RunError` with its refusal."""
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "sbatch is not on the PATH: submit where Slurm's commands are, or say submit=dry and "
            "take the script there"
        )
    job.folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["sbatch", "--parsable"], input=job.script(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RunError(f"Slurm refused the job: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]


def state(number: str) -> str:
    """As Slurm's controller says it; it needs no accounting."""
    done = subprocess.run(
        ["scontrol", "--oneliner", "show", "job", number],
        capture_output=True,
        text=True,
        check=False,
    )
    words = dict(w.split("=", 1) for w in done.stdout.split() if "=" in w)
    return words.get("JobState", "UNKNOWN")


def follow(
    number: str,
    log: Path,
    show: Callable[[str], None],
    until: str | None = None,
) -> str:
    """Shows the log's lines as they come, until one begins with `until` or the job has ended.
    Returns the job's state."""
    read = 0
    while True:
        now = state(number)
        ended = now in (*_ENDED, "UNKNOWN")
        lines, read = _new_lines(log, read, ended)
        for line in lines:
            show(line)
            if until is not None and until in line:
                return now
        if ended:
            return now
        time.sleep(_POLL_SECONDS)


def _new_lines(log: Path, read: int, whole: bool) -> tuple[list[str], int]:
    """Lines since `read` bytes; an unfinished one waits unless `whole`."""
    if not log.exists():
        return [], read
    with log.open("rb") as file:
        file.seek(read)
        text = file.read()
    end = len(text) if whole else text.rfind(b"\n") + 1
    return text[:end].decode(errors="replace").splitlines(), read + end
