"""Requests from a file of JSON lines, their continuations to another."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from threading import Event, Lock
from typing import Any

from parallel.errors import ConfigError, RequestError, RunError, did_you_mean
from parallel.requests.router import Router
from parallel.requests.types import Sampling, TokenEvent
from parallel.text.stream import TextStream
from parallel.text.tokenizer import Tokenizer

_SAMPLING = {f.name for f in fields(Sampling)}
_KEYS = sorted(_SAMPLING | {"prompt", "prompt_token_ids", "stop"})


@dataclass(frozen=True)
class Line:
    """One line of the input: `stop` are strings, watched for in the text."""

    prompt: tuple[int, ...]
    sampling: Sampling
    stop: tuple[str, ...]


def read_lines(
    path: Path, tokenizer: Tokenizer | None, context: int, vocabulary: int
) -> list[Line]:
    """Raises `ConfigError` naming the line that can't be used."""
    if not path.is_file():
        raise ConfigError(f"input={path} is not a file; give JSON lines with 'prompt'")
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        if not text.strip():
            continue
        try:
            lines.append(_line(json.loads(text), tokenizer, context, vocabulary))
        except ValueError as error:
            raise ConfigError(f"{path}, line {number} is not JSON: {error}") from None
        except RequestError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
    if not lines:
        raise ConfigError(f"input={path} holds no request; give a JSON object on each line")
    return lines


def _line(body: Any, tokenizer: Tokenizer | None, context: int, vocabulary: int) -> Line:
    if not isinstance(body, dict):
        raise RequestError("expected a JSON object with 'prompt' or 'prompt_token_ids'")
    for key in body:
        if key not in _KEYS:
            raise RequestError(
                f"unknown key '{key}'{did_you_mean(key, _KEYS)}; known: {', '.join(_KEYS)}"
            )
    prompt = _prompt(body, tokenizer, vocabulary)
    given = {k: v for k, v in body.items() if k in _SAMPLING and v is not None}
    if isinstance(given.get("logprobs"), bool):
        given["logprobs"] = 0 if given["logprobs"] else None
    try:
        sampling = Sampling.from_wire(given)
    except TypeError as error:
        raise RequestError(f"a value has the wrong type: {error}") from None
    if len(prompt) >= context:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens; the context holds {context}, one generated "
            "token included: shorten the prompt"
        )
    stop = body.get("stop") or ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(s, str) and s for s in stops):
        raise RequestError("'stop' must be a string or a list of strings, none of them empty")
    if stops and tokenizer is None:
        raise RequestError("'stop' needs a tokenizer, and the model has no tokenizer.json")
    return Line(prompt, sampling, stops)


def _prompt(body: dict[str, Any], tokenizer: Tokenizer | None, vocabulary: int) -> tuple[int, ...]:
    ids, text = body.get("prompt_token_ids"), body.get("prompt")
    if (ids is None) == (text is None):
        raise RequestError("give either 'prompt' or 'prompt_token_ids'")
    if ids is not None:
        if not isinstance(ids, list) or not all(
            type(i) is int and 0 <= i < vocabulary for i in ids
        ):
            raise RequestError(
                f"'prompt_token_ids' must be a list of ids from 0 to {vocabulary - 1}"
            )
        found = tuple(ids)
    elif not isinstance(text, str):
        raise RequestError("'prompt' must be a string")
    elif tokenizer is None:
        raise RequestError(
            "'prompt' needs a tokenizer, and the model has no tokenizer.json; "
            "give 'prompt_token_ids'"
        )
    else:
        found = tuple(tokenizer.encode(text))
    if not found:
        raise RequestError("the prompt is empty; give at least one token")
    return found


@dataclass
class _Answer:
    line: Line
    stream: TextStream | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None

    def take(self, event: TokenEvent) -> bool:
        """Adds a token; True when a stop string ends the answer before the engine does."""
        if self.finish_reason is not None:
            return False
        if event.token >= 0:
            self.tokens.append(event.token)
            self.logprobs.append(event.logprob)
            # With 'stop' comes the token that says so: it is no text.
            if self.stream is not None and event.finish_reason != "stop":
                self.text += self.stream.push([event.token])
                if self.stream.stopped is not None:
                    self.finish_reason = "stop"
                    return event.finish_reason is None
        if event.finish_reason is not None:
            self.finish_reason = event.finish_reason
            if self.stream is not None:
                self.text += self.stream.flush()
        return False

    def to_json(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "text": None if self.stream is None else self.text,
            "token_ids": self.tokens,
            "logprobs": None if self.line.sampling.logprobs is None else self.logprobs,
            "finish_reason": self.finish_reason,
        }


class Batch:
    """Sends all lines at once, and writes the answers in order when all are there."""

    def __init__(self, lines: list[Line], tokenizer: Tokenizer | None):
        self._answers = [
            _Answer(line, None if tokenizer is None else TextStream(tokenizer, line.stop))
            for line in lines
        ]
        self._left = len(lines)
        self._lock, self._done = Lock(), Event()
        self._message: str | None = None

    def run(self, router: Router) -> None:
        """Blocks until every line is answered. Raises `RunError` if one can't be."""
        for answer in self._answers:

            def deliver(event: TokenEvent, answer: _Answer = answer) -> None:
                self._deliver(router, answer, event)

            router.submit(answer.line.prompt, answer.line.sampling, deliver)
        self._done.wait()
        if self._message is not None:
            raise RunError(self._message)

    def _deliver(self, router: Router, answer: _Answer, event: TokenEvent) -> None:
        if answer.take(event):
            router.cancel(event.request_id)
        with self._lock:
            if event.finish_reason == "error":
                self._message = self._message or event.message or "a request failed"
            if event.finish_reason is not None:
                self._left -= 1
                if self._left == 0:
                    self._done.set()

    def write(self, path: Path) -> None:
        """All or nothing: what was there before stays until the new file is whole."""
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        with partial.open("w") as file:
            for row in self._rows():
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        partial.replace(path)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for index, answer in enumerate(self._answers):
            yield answer.to_json(index)
