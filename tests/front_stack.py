"""A real front process with fake leaders, for tests of the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import openai

from parallel.server.process import spawn_front
from parallel.server.settings import FrontSettings
from parallel.text.tokenizer import Tokenizer
from tests.fake_engine import FakeEngine, make_facts

KEY = "00ff"
MODEL = "org/small"


class Stack:
    """`facts` are the leader's, where they differ from the usual ones."""

    def __init__(
        self,
        directory: Path,
        leaders: bool = True,
        facts: dict[str, int] | None = None,
        **settings: Any,
    ):
        self.tokenizer = Tokenizer.load(directory)
        self.settings = FrontSettings(str(directory), MODEL, KEY, port=0, **settings)
        self.front = spawn_front(self.settings)
        host, port = self.front.wait_listening()
        self.url = f"http://{host}:{port}"
        self.engine = FakeEngine(
            self.front.router_address,
            bytes.fromhex(KEY),
            make_facts(self.tokenizer.vocabulary_size, **(facts or {})),
        )
        if leaders:
            self.engine.start()
            self.front.wait_ready(30)
        headers = {}
        if self.settings.api_key is not None:
            headers["Authorization"] = f"Bearer {self.settings.api_key}"
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=30)
        self.openai = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.settings.api_key or "none", max_retries=0
        )

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """One test's use of it: nothing is left of the one before, nor for the next."""
        self.engine.submitted.clear()
        self.engine.cancelled.clear()
        yield
        self.engine.refusal = None
        self.engine.release()
        self.engine.wait_for(lambda: self.engine.running == 0)

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.http.close()
        self.openai.close()
        self.front.drain()
        assert self.front.wait(20) is not None
        if hasattr(self.engine, "_thread"):
            self.engine.join()

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def complete(self, prompt: Any = "hello", **body: Any) -> httpx.Response:
        given = {"prompt": prompt, "temperature": 0, "max_tokens": 50, **body}
        return self.http.post("/v1/completions", json=given)

    def chat(self, content: Any = "hello", **body: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        given = {"messages": messages, "temperature": 0, **body}
        return self.http.post("/v1/chat/completions", json=given)


def chat_prompt(content: str) -> str:
    """What the fake engine repeats: the template of the small tokenizers, without specials."""
    return f"[user]{content}\n[assistant]"
