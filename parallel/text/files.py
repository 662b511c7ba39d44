"""The JSON files beside a checkpoint that say how its text is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parallel.errors import CheckpointError


def read_json(file: Path) -> dict[str, Any]:
    """An absent file is an empty map. Raises `CheckpointError` for a damaged one."""
    try:
        body = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} can't be read: {error}; fetch it again") from None
    if not isinstance(body, dict):
        raise CheckpointError(f"{file} holds no JSON object; fetch it again")
    return body


def special_tokens(directory: Path) -> dict[str, str]:
    """`bos_token`, `eos_token` … → text, as chat templates call them."""
    config = {
        **read_json(directory / "special_tokens_map.json"),
        **read_json(directory / "tokenizer_config.json"),
    }
    texts = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in config.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def declared_ids(directory: Path, name: str) -> tuple[int, ...]:
    """`eos_token_id` or `bos_token_id`: an integer or a list, in generation_config.json or else
    in config.json."""
    for file in ("generation_config.json", "config.json"):
        value = read_json(directory / file).get(name)
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list) and value:
            return tuple(int(v) for v in value)
    return ()


def chat_template(directory: Path) -> str | None:
    """The template called 'default' where there are several; None where there is none."""
    try:
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory}/chat_template.jinja can't be read: {error}") from None
    for file in ("tokenizer_config.json", "chat_template.json"):
        template = read_json(directory / file).get("chat_template")
        if isinstance(template, list):
            named = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
            template = named.get("default", next(iter(named.values()), None))
        if isinstance(template, str):
            return template
    return None
