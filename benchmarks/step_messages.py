"""What a step's scheduling costs, and what telling the other ranks of it:
`python benchmarks/step_messages.py [--requests 1,8,32] [--steps 400] [--context 700]`.

Two ways are compared. One rank schedules and sends the step; or every rank schedules the same
stream of requests, and is sent the sampled tokens alone, which no rank but the sampling one knows.
Times are of the processor, medians over decode steps; the way to a follower and back is the wall's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgpack

from parallel.report.render import make_console, make_table, write_heading, write_table
from parallel.requests.types import Request, Sampling
from parallel.requests.wire import Address, connect, listen
from parallel.runtime.sequences import Sequences, StepMessage
from parallel.scheduling.blocks import BlockManager
from parallel.scheduling.scheduler import Batch, Limits, Scheduler

_BLOCK_TOKENS = 16
_TOKEN = 7
_ROUND_TRIPS = 300


class Stopwatch:
    """Seconds of the processor, by name and step."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def run(self, name: str, call: Callable[[], Any]) -> Any:
        began = time.thread_time_ns()
        out = call()
        took = (time.thread_time_ns() - began) / 1e9
        self._seconds.setdefault(name, []).append(took)
        return out

    def microseconds(self, name: str) -> float:
        return 1e6 * median(self._seconds[name])


def measure(requests: int, steps: int, context: int) -> tuple[Stopwatch, bytes, bytes]:
    """Decode steps of so many requests, each with `context` tokens of prompt. Returns the times,
    and a message with the whole step and one with its tokens alone."""
    blocks = requests * (-(-(context + steps) // _BLOCK_TOKENS) + 1)
    limits = Limits(requests * context, requests, context + steps)
    scheduler, mirror = Scheduler(BlockManager(blocks, _BLOCK_TOKENS), limits), Sequences()
    for number in range(requests):
        prompt = tuple((31 * number + i) % 1000 for i in range(context))
        scheduler.add(Request(number, prompt, Sampling(steps, ignore_eos=True)))
    watch = Stopwatch()
    fresh: list[tuple[int, int]] = []
    whole = alone = b""
    for serial in range(steps):
        decodes = serial > 0
        timer = watch if decodes else Stopwatch()
        batch = timer.run("schedule", scheduler.schedule)
        whole = timer.run("make the step", partial(_step, serial, batch, fresh))
        alone = timer.run("make tokens", partial(_packed, {"op": "tokens", "tokens": fresh}))
        message = timer.run("read the step", partial(_read_step, whole))
        timer.run("read tokens", partial(_read, alone))
        mirror.apply(message)
        tokens = {w.sequence.id: _TOKEN for w in batch.work if w.samples}
        timer.run("complete", partial(scheduler.complete, batch, tokens))
        fresh = list(tokens.items())
    return watch, whole, alone


def _step(serial: int, batch: Batch, fresh: list[tuple[int, int]]) -> bytes:
    return _packed(StepMessage.of(serial, batch, fresh, []).to_wire())


def _read_step(raw: bytes) -> StepMessage:
    return StepMessage.from_wire(_read(raw))


def _packed(body: dict[str, Any]) -> bytes:
    raw: bytes = msgpack.packb(body, use_bin_type=True)
    return raw


def _read(raw: bytes) -> dict[str, Any]:
    body: dict[str, Any] = msgpack.unpackb(raw, raw=False)
    return body


def _answer(address: Address, key: bytes) -> None:
    channel = connect(address, key)
    while body := channel.receive():
        channel.send(body)
    channel.close()


def round_trip(sizes: Sequence[int]) -> list[float]:
    """Microseconds to a process that waits on its channel and back, for bodies of so many bytes."""
    key = secrets.token_bytes(16)
    listener = listen("127.0.0.1", key)
    other = multiprocessing.get_context("spawn").Process(
        target=_answer, args=(listener.address, key)
    )
    other.start()
    channel = listener.accept()
    found = []
    for size in sizes:
        seconds = []
        for _ in range(_ROUND_TRIPS):
            time.sleep(0.001)  # as long as a step of a small model: the other end is asleep
            began = time.perf_counter()
            channel.send({"body": b"x" * size})
            channel.receive()
            seconds.append(time.perf_counter() - began)
        found.append(1e6 * median(seconds))
    channel.send({})
    other.join()
    channel.close()
    listener.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What scheduling and telling cost")
    parser.add_argument("--requests", default="1,8,32")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--context", type=int, default=700)
    given = parser.parse_args()
    console = make_console()
    table = make_table("requests|schedule|complete|make|read|bytes|there and back", left=1)
    for requests in map(int, given.requests.split(",")):
        watch, whole, alone = measure(requests, given.steps, given.context)
        trips = round_trip([len(whole), len(alone)])
        scheduling = [f"{watch.microseconds(name):.0f} µs" for name in ("schedule", "complete")]
        for name, raw, trip in (("the step", whole, trips[0]), ("tokens", alone, trips[1])):
            made, read = (watch.microseconds(f"{verb} {name}") for verb in ("make", "read"))
            table.add_row(
                f"{requests}, {name}",
                *scheduling,
                f"{made:.0f} µs",
                f"{read:.0f} µs",
                str(len(raw)),
                f"{trip:.0f} µs",
            )
    write_heading(console, "A decode step: scheduling, and what ranks are told")
    write_table(console, table)


if __name__ == "__main__":
    main()
