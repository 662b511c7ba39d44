"""What the routes share: the model's facts, the router, and whether requests are taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, TypeVar

from parallel.errors import RunError
from parallel.requests.router import Router
from parallel.server.errors import ApiError
from parallel.server.metrics import Metrics
from parallel.server.settings import FrontSettings
from parallel.text.chat import ChatTemplate
from parallel.text.tokenizer import Tokenizer

Result = TypeVar("Result")
RETRY_SECONDS = 1


class State(Enum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"


class Active(Protocol):
    """A response under way."""

    def fail(self, message: str) -> None:
        """Ends it with an error."""


@dataclass(frozen=True)
class Served:
    """Of the model that serves, as its leader said: `room_tokens` is the most that a prompt and
    its continuation may have together."""

    plan: dict[str, Any]
    room_tokens: int
    vocabulary: int

    @classmethod
    def from_facts(cls, facts: dict[str, Any], tokenizer: Tokenizer) -> Served:
        plan = facts.get("plan", {})
        context = facts["context_tokens"]
        return cls(
            plan,
            min(context, plan.get("kv_cache_tokens") or context),
            facts.get("vocabulary", tokenizer.vocabulary_size),
        )


@dataclass
class Service:
    """Belongs to the event loop's thread."""

    settings: FrontSettings
    tokenizer: Tokenizer
    template: ChatTemplate | None
    router: Router
    metrics: Metrics
    created: int
    state: State = State.LOADING
    active: set[Active] = field(default_factory=set)
    restart: dict[str, Any] = field(default_factory=dict)
    _served: Served | None = None
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(4, "front"))
    _questions: dict[str, asyncio.Task[Any]] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.settings.model_name

    @property
    def served(self) -> Served:
        """Raises `ApiError` 503 while no leader has said what it serves."""
        if self._served is None:
            raise self._unavailable("the model is loading; ask /ready and try again")
        return self._served

    def start(self) -> None:
        """Every leader has connected: requests are taken from now on."""
        if self.state is State.LOADING:
            self._served = Served.from_facts(self.router.facts, self.tokenizer)
            self.state = State.READY

    def check_ready(self) -> None:
        """Raises `ApiError` 503 unless new requests are taken."""
        if self.state is State.DRAINING:
            raise self._unavailable("the server is shutting down; try another")
        if self.state is State.LOST:
            raise self._unavailable("a rank was lost; the server is ending")
        _ = self.served

    async def in_thread(self, work: Callable[[], Result]) -> Result:
        """For work that would keep the loop from sending tokens."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def healthy(self) -> bool:
        """True when every rank answers. Those who ask at once share one question."""
        if self.state in (State.LOADING, State.LOST):
            return False
        seconds = self.settings.health_seconds
        return bool(await self._ask("health", lambda: self.router.ping(seconds)))

    async def reports(self) -> list[dict[str, Any]]:
        """One of each replica. Raises `ApiError` 503 when one doesn't answer."""
        _ = self.served
        seconds = self.settings.report_seconds
        try:
            return list(await self._ask("report", lambda: self.router.report(seconds)))
        except RunError as error:
            raise self._unavailable(str(error)) from None

    async def _ask(self, name: str, question: Callable[[], Any]) -> Any:
        task = self._questions.get(name)
        if task is None or task.done():
            task = self._questions[name] = asyncio.create_task(self.in_thread(question))
        return await asyncio.shield(task)

    def fail_active(self, message: str) -> None:
        for response in list(self.active):
            response.fail(message)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _unavailable(message: str) -> ApiError:
        return ApiError(503, message, code="unavailable", retry_seconds=RETRY_SECONDS)
