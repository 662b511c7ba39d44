"""One turn of one system: started on a checkpoint, asked every load, ended."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load.client import serve_load
from benchmarks.load.jobs import MIXED, READY, Load, Served, incomplete, make_load
from benchmarks.load.measured import Measured, summarise
from benchmarks.load.processes import Family, free_port
from benchmarks.load.sse import Address, HttpError, request
from benchmarks.load.systems import OURS, ROOT, SERVERS, System, start_driver, start_server

_READY_SECONDS = 900.0
_POLL_SECONDS = 0.2
_WARM_UP_REQUESTS = 2
_HOST = "127.0.0.1"
_ERROR = re.compile(r"^(?:\[\w+\]: )*(?:error|(?:\w+\.)*\w*Error): (.+)$", re.MULTILINE)


class SystemFailed(Exception):
    """A system didn't start, or didn't answer as asked; the message is its own last error."""


@dataclass(frozen=True)
class Setting:
    """What every system is measured on."""

    model: Path
    gguf: Path
    vocabulary: int
    loads: Sequence[Load]
    seconds: float


@dataclass(frozen=True)
class Turn:
    """`report` is what our own server says of itself at the end; None of a peer."""

    measured: Sequence[Measured]
    start_seconds: float
    report: Any = None


def take_turn(system: System, python: Path, setting: Setting, scratch: Path) -> Turn:
    """Raises `SystemFailed`. `scratch` keeps what the system printed."""
    if system.name in SERVERS:
        return _ask_server(system, python, setting, scratch)
    return _run_driver(system, python, setting, scratch)


def _ask_server(system: System, python: Path, setting: Setting, scratch: Path) -> Turn:
    address = Address(_HOST, free_port())
    start = start_server(system, setting.model, setting.gguf, python, address.port)
    began = time.perf_counter()
    family = Family(start.command, start.variables, scratch / f"{system.label}.log", ROOT)
    try:
        wait_until_healthy(family, address)
        start_seconds = time.perf_counter() - began
        warm_up = make_load(MIXED, 1, _WARM_UP_REQUESTS, setting.vocabulary, turn=-1)
        serve_load(address, warm_up, setting.seconds)
        measured = []
        for load in setting.loads:
            family.take_peak_bytes()
            served = serve_load(address, load, setting.seconds)
            measured.append(_checked(load, served, family.take_peak_bytes()))
        return Turn(measured, start_seconds, _report(address) if system.name == OURS else None)
    except (HttpError, OSError) as error:
        raise SystemFailed(f"{error}; {reason(family)}") from None
    finally:
        family.end()


def wait_until_healthy(family: Family, address: Address) -> None:
    """Raises `SystemFailed` when it ends first, or takes too long."""
    end = time.perf_counter() + _READY_SECONDS
    while time.perf_counter() < end:
        if not family.alive():
            raise SystemFailed(reason(family))
        try:
            status, _ = asyncio.run(request(address, "GET", "/health"))
        except (OSError, HttpError):
            status = 0
        if status == 200:
            return
        time.sleep(_POLL_SECONDS)
    raise SystemFailed(f"wasn't ready within {_READY_SECONDS:.0f} s")


def _report(address: Address) -> Any:
    status, body = asyncio.run(request(address, "GET", "/v1/parallel/report"))
    if status != 200:
        raise SystemFailed(f"HTTP {status} for its report")
    return json.loads(body)


def _run_driver(system: System, python: Path, setting: Setting, scratch: Path) -> Turn:
    loads, results = scratch / "loads", scratch / "results"
    for folder in (loads, results):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for i, load in enumerate(setting.loads):
        load.write(loads / f"{i:02d}.json")
    start = start_driver(system, setting.model, python, loads, results, setting.seconds)
    family = Family(start.command, start.variables, scratch / f"{system.label}.log", ROOT)
    began = time.perf_counter()
    try:
        _wait_for(results / READY, family)
        start_seconds = time.perf_counter() - began
        measured = []
        for i, load in enumerate(setting.loads):
            family.take_peak_bytes()
            path = results / f"{i:02d}.json"
            _wait_for(path, family)
            served = Served.read(path)
            measured.append(_checked(load, served, family.take_peak_bytes()))
        return Turn(measured, start_seconds)
    finally:
        family.end()


def _wait_for(path: Path, family: Family) -> None:
    while not path.exists():
        if not family.alive() and not path.exists():
            raise SystemFailed(reason(family))
        time.sleep(_POLL_SECONDS)


def _checked(load: Load, served: Served, memory_bytes: int) -> Measured:
    wrong = incomplete(load, served)
    if wrong:
        raise SystemFailed(f"{wrong[0]}; so did {len(wrong) - 1} more")
    return summarise(load, served, memory_bytes)


def reason(family: Family) -> str:
    """The last error that it printed, else its last line."""
    text = family.text()
    found = [m[0] for m in _ERROR.finditer(text) if "ChildFailedError" not in m[0]]
    last = found[-1] if found else (text.strip().splitlines() or ["printed nothing"])[-1]
    return last[:300]
