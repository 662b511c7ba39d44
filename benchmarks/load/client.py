"""A closed loop of clients against an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.load.jobs import Answer, Job, Load, Served
from benchmarks.load.sse import Address, post_stream

MODEL = "bench"
"""What every server is told to call its model."""
_PATH = "/v1/completions"


def serve_load(address: Address, load: Load, seconds: float) -> Served:
    """No request is sent after `seconds`, those under way are answered. Raises `HttpError`."""
    try:
        return asyncio.run(_run(address, load, seconds))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _run(address: Address, load: Load, seconds: float) -> Served:
    began = time.perf_counter()
    jobs = iter(enumerate(load.jobs))
    answers: dict[int, Answer] = {}
    idle: list[float] = []

    async def client() -> None:
        for i, job in _until(jobs, began + seconds):
            answers[i] = await complete(address, job)
        idle.append(time.perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(load.clients):
            group.create_task(client())
    return Served(began, min(idle), tuple(answers[i] for i in sorted(answers)))


def _until(jobs: Iterator[tuple[int, Job]], end: float) -> Iterator[tuple[int, Job]]:
    while time.perf_counter() < end:
        following = next(jobs, None)
        if following is None:
            return
        yield following


async def complete(address: Address, job: Job) -> Answer:
    sent = time.perf_counter()
    stamps: list[float] = []
    async for event in post_stream(address, _PATH, request_body(job)):
        count = tokens_after(event, len(stamps))
        now = time.perf_counter()
        stamps.extend(now for _ in range(count - len(stamps)))
    return Answer(sent, tuple(stamps))


def request_body(job: Job) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": list(job.prompt),
        "max_tokens": job.output_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }


def tokens_after(event: Any, before: int) -> int:
    """Tokens known after an event: what its usage says, else one more for each with a choice that
    isn't only the end. Text may be held back for tokens that are half a character."""
    usage = event.get("usage")
    if usage:
        return int(usage["completion_tokens"])
    return before + sum(1 for choice in event.get("choices", ()) if choice.get("text"))
