"""What is asked of an engine: a prompt of token ids and how to continue it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from math import inf
from typing import Any, NamedTuple

from parallel.errors import RequestError

_INT64 = 1 << 63


@dataclass(frozen=True)
class Sampling:
    """How the next tokens are chosen.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off; penalties are OpenAI's
    (`presence`, `frequency`, over generated tokens) and Hugging Face's (`repetition`, over
    prompt and generated tokens). `logprobs` is how many alternatives to report beside the
    chosen token (0: the chosen one alone), or None. Stop strings are not here: text is
    the business of whoever holds the tokenizer.
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_k", "seed"):
            _check_integer(name, getattr(self, name))
        for token in self.stop_token_ids:
            _check_integer("stop_token_ids", token)
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs)
        _check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        heat = self.temperature
        _check(0 <= heat <= 100, "temperature", heat, "from 0 (greedy) to 100")
        _check(self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and up to 1 (off)")
        strength = self.repetition_penalty
        _check(0 < strength < inf, "repetition_penalty", strength, "a finite number above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(-2 <= value <= 2, name, value, "from -2 to 2")
        if self.logprobs is not None:
            _check(0 <= self.logprobs <= 20, "logprobs", self.logprobs, "from 0 to 20")

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> Sampling:
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in body.items() if k in known}
        values["stop_token_ids"] = tuple(values.get("stop_token_ids", ()))
        return cls(**values)


def _check(legal: bool, name: str, value: object, range_: str) -> None:
    if not legal:
        raise RequestError(f"{name}={value} is out of range; give {range_}", param=name)


def _check_integer(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(f"{name}={value!r} has the wrong type; give an integer", param=name)
    _check(-_INT64 <= value < _INT64, name, value, "an integer of 64 bits")


@dataclass(frozen=True)
class Request:
    """One sequence to continue. `id` is unique within the process that routes requests. A lower
    `priority` comes first. Requests of one `group` have the same prompt, computed once for all."""

    id: int
    prompt: tuple[int, ...]
    sampling: Sampling
    priority: int = 0
    group: int | None = None

    def __post_init__(self) -> None:
        _check_integer("priority", self.priority)

    def to_wire(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "prompt": self.prompt,
            "sampling": self.sampling.to_wire(),
            "priority": self.priority,
            "group": self.group,
        }

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> Request:
        """Raises `RequestError` for a sampling or a priority that no engine takes."""
        sampling = Sampling.from_wire(body["sampling"])
        priority, group = body.get("priority", 0), body.get("group")
        return cls(body["id"], tuple(body["prompt"]), sampling, priority, group)


class TokenEvent(NamedTuple):
    """One generated token. `finish_reason` is 'stop' or 'length' with the last token,
    'cancelled' or 'error' (then `token` may be -1 and `message` says why) when it was cut short;
    `top` holds `(token, logprob)` of the alternatives asked for. `cached_tokens` comes with the
    first token: how many of the prompt's were in the cache already; `code` with a message, as
    errors of requests have it ('queue_full': the replica takes no more for now)."""

    request_id: int
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: str | None = None
    message: str | None = None
    cached_tokens: int | None = None
    code: str | None = None
