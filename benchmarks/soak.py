"""Mixed traffic for a while against a server, good and bad, and whether the server is sound after:
`python benchmarks/soak.py [--minutes 10] [--layout tp=2] [--model default] …`.

Exit status 0: no error, no place lost, memory flat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.load.processes import Family, free_port
from benchmarks.load.running import SystemFailed, reason, wait_until_healthy
from benchmarks.load.sse import Address, HttpError
from benchmarks.load.systems import OURS, ROOT, System, start_ours
from benchmarks.models import MODELS
from benchmarks.soaking.run import Soaked, soak, summary
from benchmarks.soaking.traffic import Tally, Traffic
from benchmarks.soaking.vitals import Vitals
from parallel.units import GIB, MIB

_LAYOUTS = {
    "tp=2": System(OURS, tp=2),
    "pp=2": System(OURS, pp=2),
    "dp=2": System(OURS, dp=2),
    "tp=1": System(OURS),
}
_CONTEXT_TOKENS = 512
_REQUESTS = 4
_QUEUE = 8
_CACHE_TOKENS = 3 * _CONTEXT_TOKENS
"""Less than the running requests may want, so that some have to give way."""
_SERVE_KEYS = ("served_model_name", "port", "threads")


def main() -> None:
    # An end from outside ends the server too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="tessera-soak-") as scratch:
        log = arguments.log or Path(scratch) / "server.log"
        try:
            soaked, faults = run(
                MODELS[arguments.model](),
                _LAYOUTS[arguments.layout],
                log,
                arguments.clients,
                _until(60 * arguments.minutes),
                arguments.growth,
                _show,
            )
        except SystemFailed as error:
            raise SystemExit(f"not sound: the server failed: {error}") from None
    for line in summary(soaked):
        print(line)
    for fault in faults:
        print(f"fault: {fault}")
    print("not sound" if faults else "sound: no error, no place lost, memory flat")
    raise SystemExit(1 if faults else 0)


def run(
    model: Path,
    system: System,
    log: Path,
    clients: int,
    goes_on: Callable[[], Callable[[int], bool]],
    growth_mib_per_minute: float,
    show: Callable[[Vitals, Tally], None] = lambda _, __: None,
) -> tuple[Soaked, list[str]]:
    """A server started, soaked and ended; `goes_on()` is asked once it is warm. Also what was
    wrong, in words. Raises `SystemFailed` when it doesn't start or no longer answers at all."""
    address = Address("127.0.0.1", free_port())
    keys: dict[str, object] = {
        "engine.context_tokens": _CONTEXT_TOKENS,
        "engine.requests": _REQUESTS,
        "engine.queue": _QUEUE,
    }
    keys["memory_gib"] = _budget_gib(start_ours(system, model, 0, keys).command)
    start = start_ours(system, model, address.port, keys)
    vocabulary = int(json.loads((model / "config.json").read_text())["vocab_size"])
    family = Family(start.command, start.variables, log, ROOT)
    burst = 3 * (_REQUESTS + _QUEUE)
    try:
        wait_until_healthy(family, address)

        async def both() -> Soaked:
            before = Traffic(address, vocabulary, _CONTEXT_TOKENS, burst, seed=1)
            await soak(family, address, before, clients, lambda begun: begun < before.round)
            traffic = Traffic(address, vocabulary, _CONTEXT_TOKENS, burst, seed=2)
            return await soak(family, address, traffic, clients, goes_on(), show=show)

        soaked = asyncio.run(both())
        faults = soaked.faults(growth_mib_per_minute * MIB / 60)
        if not family.alive():
            faults.append(f"the server ended: {family.text()[-300:]}")
        return soaked, faults
    except (HttpError, OSError) as error:
        raise SystemFailed(f"{error}; {reason(family)}") from None
    finally:
        family.end()


def _budget_gib(command: Sequence[str]) -> float:
    """What a rank needs so that its cache has room for `_CACHE_TOKENS`, by the plan: with
    all blocks in use soon, memory that still grows is no cache's that is touched at last."""
    words = [word for word in command[2:] if word.partition("=")[0] not in _SERVE_KEYS]
    plan = [sys.executable, "launch/plan.py", *words, "output=json"]
    done = subprocess.run(plan, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)["plans"][0]
    needs: list[float] = []
    for rank in found["ranks"]:
        memory = rank["memory_bytes"]
        cache = memory["kv_cache"] / found["kv_cache_tokens"] * _CACHE_TOKENS
        needs.append(memory["total"] - memory["kv_cache"] + cache)
    return max(needs) / GIB


def _until(seconds: float) -> Callable[[], Callable[[int], bool]]:
    def begin() -> Callable[[int], bool]:
        end = time.monotonic() + seconds
        return lambda _: time.monotonic() < end

    return begin


def _show(vitals: Vitals, tally: Tally) -> None:
    print(
        f"\r{sum(tally.done.values())} requests, {len(tally.unexpected)} unexpected; "
        f"{vitals.resident_bytes / MIB:.0f} MiB, {vitals.descriptors} descriptors, "
        f"{vitals.threads} threads, {1 - vitals.load.cache_used:.0%} of the cache free   ",
        end="\n" if not sys.stderr.isatty() else "",
        file=sys.stderr,
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--layout", choices=_LAYOUTS, default="tp=2")
    parser.add_argument("--model", choices=MODELS, default="default")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument(
        "--growth", type=float, default=1.0, metavar="MIB", help="per minute, still called flat"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="keeps what the server prints")
    return parser.parse_args()


if __name__ == "__main__":
    main()
