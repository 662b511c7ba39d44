"""The systems that are compared: how each is started, and what came of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workload import NEW_TOKENS, PROMPT_TOKENS, Measurement, decoded_tokens

ROOT = Path(__file__).resolve().parent.parent
THREADS = 2
"""Of all ranks of a system together."""
_LIMIT_SECONDS = 1200.0
_ERROR = re.compile(r"^(?:\[rank\d+\]: )?(?:error|(?:\w+\.)*\w*Error): (.+)$", re.MULTILINE)
_PEER_MODULES = {
    "transformers": "benchmarks.peers.huggingface",
    "deepspeed": "benchmarks.peers.autotp",
}
OURS = "tessera"
PEERS = tuple(_PEER_MODULES)


class SystemFailed(Exception):
    """A system ended without a measurement; the message is its own last error."""


@dataclass(frozen=True)
class Task:
    """One model directory and one file of prompts."""

    model: Path
    prompts: Path
    batch: int


@dataclass(frozen=True)
class System:
    """`name` split over `tp` ranks that share the `THREADS` threads."""

    name: str
    tp: int

    @property
    def label(self) -> str:
        return f"{self.name} tp={self.tp}"

    def measure(self, task: Task, scratch: Path) -> Measurement:
        """Runs it once as processes of their own. Raises `SystemFailed`."""
        threads = THREADS // self.tp
        if self.name == OURS:
            return _measure_ours(task, self.tp, threads, scratch)
        launcher = [sys.executable]
        if self.tp > 1:
            launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(self.tp)]
            launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        arguments = [f"--model={task.model}", f"--prompts={task.prompts}", f"--threads={threads}"]
        output = _run([*launcher, "-m", _PEER_MODULES[self.name], *arguments], threads)
        lines = [line for line in output.splitlines() if line.startswith('{"decode_')]
        if len(lines) != 1:
            raise SystemFailed(f"printed {len(lines)} measurements, expected one")
        return Measurement.from_line(lines[0])


def systems(peers: list[str]) -> list[System]:
    """Ours at tp 2 and 1, and each peer beside it; AutoTP is measured split only."""
    found = []
    for tp in (2, 1):
        found.append(System(OURS, tp))
        found += [System(peer, tp) for peer in peers if (peer, tp) != ("deepspeed", 1)]
    return found


def _measure_ours(task: Task, tp: int, threads: int, scratch: Path) -> Measurement:
    """The launcher that users call; every prompt fits into one prefill step."""
    output, report = scratch / "output.jsonl", scratch / "report.json"
    output.unlink(missing_ok=True)
    report.unlink(missing_ok=True)
    settings = {
        "model": task.model,
        "tp": tp,
        "threads": threads,
        "input": task.prompts,
        "output": output,
        "report": report,
        "engine.step_tokens": task.batch * PROMPT_TOKENS,
        "engine.requests": task.batch,
    }
    _run(
        [sys.executable, "launch/generate.py", *(f"{k}={v}" for k, v in settings.items())], threads
    )
    counts = [len(json.loads(line)["token_ids"]) for line in output.read_text().splitlines()]
    body = json.loads(report.read_text())
    prefill, decode = body["steps"]["prefill"], body["steps"]["decode"]
    if counts != [NEW_TOKENS] * task.batch or decode["steps"] != NEW_TOKENS - 1:
        raise SystemFailed(f"gave {counts} tokens in {decode['steps']} decode steps: not asked")
    return Measurement(
        decode_tokens_per_second=decoded_tokens(task.batch) / decode["measured_seconds"],
        decode_seconds=decode["measured_seconds"],
        prefill_seconds=prefill["measured_seconds"],
        peak_rss_bytes=max(rank["peak_rss_bytes"] for rank in body["ranks"]),
    )


def _run(command: list[str], threads: int) -> str:
    """What `command` wrote to stdout. A system that doesn't end in time is ended with its ranks."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=_LIMIT_SECONDS)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise SystemFailed(f"didn't end within {_LIMIT_SECONDS:.0f} s") from None
        raise
    if process.returncode:
        raise SystemFailed(_reason(errors, process.returncode))
    return output


def _reason(errors: str, code: int) -> str:
    found = [m[0] for m in _ERROR.finditer(errors) if "ChildFailedError" not in m[0]]
    last = found[-1] if found else (errors.strip().splitlines() or [""])[-1]
    return re.sub(r"^\[rank\d+\]: ", "", last) or f"exit status {code}"
