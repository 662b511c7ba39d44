"""Messages to one prompt by the model's own template, rendered as transformers renders it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from parallel.errors import CheckpointError, RequestError

Message = Mapping[str, Any]
_SHOWN_CHARACTERS = 300


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote; it matters in training alone."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """`tokens` are the special tokens by name, which templates use as variables."""

    def __init__(self, source: str, tokens: Mapping[str, str]):
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._tokens = dict(tokens)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise CheckpointError(
                f"the model's chat template can't be read: {error}; mend chat_template.jinja"
            ) from None

    def render(
        self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None
    ) -> str:
        """Content given as parts is joined. `variables` are the template's own switches. Raises
        `RequestError` where the template refuses the messages."""
        given = {
            **(variables or {}),
            **self._tokens,
            "messages": [_plain(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            return self._template.render(given)
        except TemplateError as error:
            reason = str(error)[:_SHOWN_CHARACTERS]
            raise RequestError(
                f"the model's chat template refuses these messages: {reason}", param="messages"
            ) from None
        except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise RequestError(
                "the model's chat template can't render these messages "
                f"({type(error).__name__}); send role and content as text",
                param="messages",
            ) from None


def _plain(message: Message) -> dict[str, Any]:
    content = message.get("content")
    if content is None:
        content = ""
    elif not isinstance(content, str):
        content = "".join(_text(part) for part in content)
    return {**message, "content": content}


def _text(part: object) -> str:
    if isinstance(part, Mapping):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        if part.get("type") == "refusal" and isinstance(part.get("refusal"), str):
            return str(part["refusal"])
    raise RequestError(
        'content parts must be {"type": "text", "text": …}; this model takes text alone',
        param="messages",
    )


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
