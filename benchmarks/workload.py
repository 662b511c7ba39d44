"""What every system is given, and what it must say about its run."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

PROMPT_TOKENS = 128
NEW_TOKENS = 64
_SEED = 7


@dataclass(frozen=True)
class Measurement:
    """One run of one system: decode leaves out the prefill and the token that it samples.

    `peak_rss_bytes` is the largest of its ranks."""

    decode_tokens_per_second: float
    decode_seconds: float
    prefill_seconds: float
    peak_rss_bytes: int

    def to_line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Measurement:
        return cls(**json.loads(line))


def decoded_tokens(batch: int) -> int:
    """Tokens of the decode steps: the first of each sequence comes from its prefill."""
    return batch * (NEW_TOKENS - 1)


def write_prompts(path: Path, batch: int, vocabulary: int) -> None:
    """`batch` prompts of random ids as JSON lines, in the form that launch/generate.py reads."""
    chooser = random.Random(_SEED)
    lines = [
        {
            "prompt_token_ids": [chooser.randrange(3, vocabulary) for _ in range(PROMPT_TOKENS)],
            "max_tokens": NEW_TOKENS,
            "temperature": 0.0,
            "ignore_eos": True,
        }
        for _ in range(batch)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_prompts(path: Path) -> list[list[int]]:
    return [json.loads(line)["prompt_token_ids"] for line in path.read_text().splitlines()]
