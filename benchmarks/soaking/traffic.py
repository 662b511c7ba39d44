"""What clients of a soak do, good and bad, in an order that a seed decides."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.client import MODEL, tokens_after
from benchmarks.load.sse import Address, HttpError, post_stream, request
from benchmarks.soaking.bad_requests import BAD_REQUESTS

_PATH = "/v1/completions"
_FIRST_ID = 256
_MOST_OUTPUT_TOKENS = 24
_BUSY = 429
_PAUSE_SECONDS = 0.25
"""Before a client that was refused does something else."""

_Action = tuple[int, str, Callable[[], Awaitable[None]]]
"""Weight, name, what is done."""


@dataclass
class Tally:
    """What came of the requests: by kind of action, and everything that shouldn't have happened."""

    done: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)


class Traffic:
    """The actions against one server. Prompts are token ids below `vocabulary`; no sequence is
    longer than `context_tokens`; a burst has `burst` requests at once."""

    def __init__(
        self, address: Address, vocabulary: int, context_tokens: int, burst: int, seed: int = 0
    ):
        self._address, self._burst = address, burst
        self._vocabulary, self._context = vocabulary, context_tokens
        self._random = random.Random(seed)
        self._shared = self._ids(context_tokens // 2)
        self.tally = Tally()
        self._deck: list[_Action] = []
        self._actions: tuple[_Action, ...] = (
            (6, "stream", self._stream),
            (4, "whole", self._whole),
            (5, "cancelled", self._cancel),
            (5, "bad request", self._bad),
            (3, "several", self._several),
            (2, "long prompt", self._long),
            (4, "shared prefix", self._prefix),
            (1, "burst", self._burst_of),
        )

    @property
    def round(self) -> int:
        """So many actions have all kinds among them, each as often as its weight says."""
        return sum(weight for weight, _, _ in self._actions)

    async def act(self) -> None:
        """The next action. Whatever it shouldn't meet is noted, never raised."""
        if not self._deck:
            self._deck = [action for action in self._actions for _ in range(action[0])]
            self._random.shuffle(self._deck)
        _, name, action = self._deck.pop()
        try:
            await action()
            self.tally.done[name] += 1
        except HttpError as error:
            if error.status == _BUSY:
                self.tally.done["refused: queue full"] += 1
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                self.tally.unexpected.append(f"{name}: {error}")
        except (OSError, AssertionError, ValueError) as error:
            self.tally.unexpected.append(f"{name}: {error!r}")

    def _ids(self, count: int) -> list[int]:
        return [self._random.randrange(_FIRST_ID, self._vocabulary) for _ in range(count)]

    def _body(self, prompt: list[int], **fields: Any) -> dict[str, Any]:
        tokens = self._random.randint(1, _MOST_OUTPUT_TOKENS)
        sampled = self._random.random() < 0.5
        return {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0.8 if sampled else 0.0,
            "ignore_eos": True,
        } | fields

    async def _streamed(self, prompt: list[int]) -> None:
        usage = {"include_usage": True, "continuous_usage_stats": True}
        body = self._body(prompt, stream=True, stream_options=usage)
        tokens = 0
        async with aclosing(post_stream(self._address, _PATH, body)) as events:
            async for event in events:
                tokens = tokens_after(event, tokens)
        assert tokens == body["max_tokens"], f"{tokens} tokens of {body['max_tokens']}"

    async def _stream(self) -> None:
        await self._streamed(self._ids(self._random.randint(1, self._context // 4)))

    async def _long(self) -> None:
        await self._streamed(self._ids(self._context - _MOST_OUTPUT_TOKENS))

    async def _prefix(self) -> None:
        kept = self._random.randint(1, len(self._shared))
        await self._streamed(self._shared[:kept] + self._ids(self._random.randint(1, 8)))

    async def _whole(self) -> None:
        body = self._body(self._ids(self._random.randint(1, self._context // 4)))
        answer = await self._answered(body)
        count = answer["usage"]["completion_tokens"]
        assert count == body["max_tokens"], f"{count} tokens of {body['max_tokens']}"

    async def _several(self) -> None:
        n = self._random.randint(2, 4)
        body = self._body(self._ids(self._random.randint(1, 64)), n=n, temperature=0.9)
        answer = await self._answered(body)
        assert len(answer["choices"]) == n, f"{len(answer['choices'])} choices of {n}"
        count = answer["usage"]["completion_tokens"]
        assert count == n * body["max_tokens"], f"{count} tokens of {n * body['max_tokens']}"

    async def _answered(self, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        status, answer = await request(self._address, "POST", _PATH, data)
        if status != 200:
            raise HttpError(status, answer.decode(errors="replace"))
        return json.loads(answer)

    async def _cancel(self) -> None:
        """Goes away after a few tokens, or before the first one."""
        prompt = self._ids(self._random.randint(1, self._context // 2))
        body = self._body(prompt, stream=True, max_tokens=self._context // 3)
        patience = self._random.choice((0.0, 0.02, None))
        seen, enough = 0, self._random.randint(1, 5)
        try:
            async with asyncio.timeout(patience):
                async with aclosing(post_stream(self._address, _PATH, body)) as events:
                    async for _ in events:
                        seen += 1
                        if seen == enough:
                            return
        except TimeoutError:
            return

    async def _bad(self) -> None:
        bad = self._random.choice(BAD_REQUESTS)
        status, answer = await request(self._address, bad.method, bad.path, bad.body)
        text = answer.decode(errors="replace")
        assert status in bad.expected, f"{bad.name}: HTTP {status}: {text[:200]}"
        assert isinstance(json.loads(text)["error"]["message"], str), bad.name

    async def _burst_of(self) -> None:
        """More at once than the queue takes: each is answered, or told to come again."""

        async def one(prompt: list[int]) -> None:
            try:
                await self._streamed(prompt)
                self.tally.done["in a burst"] += 1
            except HttpError as error:
                if error.status != _BUSY:
                    raise
                self.tally.done["refused: queue full"] += 1

        prompts = [self._ids(self._random.randint(8, 64)) for _ in range(self._burst)]
        found = await asyncio.gather(*map(one, prompts), return_exceptions=True)
        for error in found:
            if error is not None:
                raise error
