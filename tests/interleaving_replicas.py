"""The same script at the router of two replicas, whose leaders are ranks of the pool."""

from __future__ import annotations

import secrets
from itertools import groupby
from threading import Condition, Thread
from typing import Any

import torch

from parallel.collectives.mesh import MeshOptions
from parallel.devices.cpu import CpuDevice
from parallel.layout.degrees import Degrees
from parallel.requests.placing import Ask, QueueFull
from parallel.requests.router import Router
from parallel.requests.types import Sampling, TokenEvent
from parallel.requests.wire import connect, listen
from parallel.runtime.engine import Engine
from parallel.runtime.job import RankJob
from tests.interleaving_case import Script, answer_of, left_behind, tight_plan, watch

REPLICAS = 2
_PATIENCE_SECONDS = 60.0
_REFUSED = {"tokens": [], "reason": "error", "code": "queue_full", "cached": []}


class Client:
    """Sends what is due, siblings together, and collects what comes."""

    def __init__(self, router: Router, script: Script):
        self._router, self._script = router, script
        self._events: dict[int, list[TokenEvent]] = {}
        self._numbers: dict[int, int] = {}
        self._refused: list[int] = []
        self._tokens = 0
        self._changed = Condition()

    def run(self) -> None:
        try:
            assert self._router.wait_ready(_PATIENCE_SECONDS)
            for _, entries in groupby(self._script, key=_sibling_of):
                due = list(entries)
                self._await_tokens(due[0]["after"])
                if "cancel" in due[0]:
                    self._cancel(due[0]["cancel"])
                else:
                    self._submit([entry["submit"] for entry in due])
            self._router.drain(_PATIENCE_SECONDS)
        finally:
            self._router.stop()

    def _await_tokens(self, count: int) -> None:
        """Or till nothing is under way that could bring them."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._tokens >= count or not self._under_way(), _PATIENCE_SECONDS
            )
            self._tokens = max(self._tokens, count)

    def _under_way(self) -> bool:
        return any(not e or e[-1].finish_reason is None for e in self._events.values())

    def _submit(self, siblings: list[dict[str, Any]]) -> None:
        parts = []
        with self._changed:
            for wanted in siblings:
                self._events[wanted["id"]] = []
        for wanted in siblings:

            def deliver(event: TokenEvent, number: int = wanted["id"]) -> None:
                with self._changed:
                    self._events[number].append(event)
                    self._tokens += event.token >= 0
                    self._changed.notify_all()

            parts.append((Sampling.from_wire(wanted["sampling"]), deliver))
        first = siblings[0]
        try:
            (ids,) = self._router.submit_all([Ask(first["prompt"], parts, first["priority"])])
        except QueueFull:
            with self._changed:
                for wanted in siblings:
                    del self._events[wanted["id"]]
                    self._refused.append(wanted["id"])
            return
        self._numbers.update(zip((w["id"] for w in siblings), ids, strict=True))

    def _cancel(self, number: int) -> None:
        if number in self._numbers:
            self._router.cancel(self._numbers[number])

    def answers(self) -> dict[int, dict[str, Any]]:
        came = {n: {**answer_of(e), "code": e[-1].code} for n, e in self._events.items()}
        return came | dict.fromkeys(self._refused, _REFUSED)


def _sibling_of(entry: dict[str, Any]) -> tuple[str, int]:
    if "cancel" in entry:
        return "cancel", entry["cancel"]
    wanted = entry["submit"]
    return "submit", wanted["id"] if wanted["group"] is None else wanted["group"]


def interleave(rank: int, model: str, script: Script) -> dict[str, Any]:
    """On either leader what it holds in the end; on rank 0 the answers too."""
    torch.set_num_threads(1)
    plan = tight_plan(model, Degrees(1, 1, REPLICAS), None)
    job = RankJob(plan, rank, CpuDevice(1), MeshOptions("gloo", 120.0, plan.batches))
    client, feeding = None, None
    try:
        job.load(lambda _: None)
        if rank == 0:
            key = secrets.token_bytes(16)
            listener = listen("127.0.0.1", key)
            job.mesh.exchange.put("router", [*listener.address, key.hex()])
            client = Client(Router(listener, REPLICAS, on_lost=lambda _: None), script)
            feeding = Thread(target=client.run, daemon=True)
            feeding.start()
        host, port, key_text = job.mesh.exchange.get("router")
        channel = connect((host, port), bytes.fromhex(key_text))
        facts = {
            "block_tokens": plan.limits.block_tokens,
            "prefix_blocks": plan.blocks,
            "most_sequences": plan.limits.most_sequences,
        }
        number = job.coordinates.dp
        channel.send({"type": "hello", "replica": number, "replicas": REPLICAS, "facts": facts})
        engine = Engine(plan, job.worker, job.control, channel, job.clock, job.replica_report)
        seen = watch(engine)
        engine.run()
        channel.close()
        found = left_behind(engine, job, seen)
        if feeding is not None and client is not None:
            feeding.join(_PATIENCE_SECONDS)
            found["answers"] = client.answers()
        return found
    finally:
        job.close()
