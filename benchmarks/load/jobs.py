"""The requests of a load: the same token ids for every system, from a seed alone."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

READY = "ready"
"""The file by which a driver says that it begins."""
_SEED = 20261122
_FIRST_ID = 256
"""Lower ids are special tokens in some vocabularies."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and of answers, each uniform between two ends (inclusive)."""

    prompt: tuple[int, int]
    output: tuple[int, int]


MIXED = Lengths((32, 512), (16, 128))
"""What a server meets: short and long beside each other."""
DECODE = Lengths((128, 128), (64, 64))
"""All alike, so that the steps between prefills are of full batches."""


@dataclass(frozen=True)
class Job:
    """One request: greedy, and the end token doesn't end it."""

    prompt: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True)
class Load:
    """`clients` that each take the next job when their last one is answered."""

    clients: int
    jobs: tuple[Job, ...]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Load:
        found = json.loads(path.read_text())
        jobs = (Job(tuple(job["prompt"]), job["output_tokens"]) for job in found["jobs"])
        return cls(found["clients"], tuple(jobs))


def make_load(lengths: Lengths, clients: int, requests: int, vocabulary: int, turn: int) -> Load:
    """No two loads of one run share prompts, so that no system can answer from a prefix cache."""
    chooser = random.Random(f"{_SEED} {clients} {turn}")
    jobs = []
    for _ in range(requests):
        prompt_tokens = chooser.randint(*lengths.prompt)
        prompt = tuple(chooser.randrange(_FIRST_ID, vocabulary) for _ in range(prompt_tokens))
        jobs.append(Job(prompt, chooser.randint(*lengths.output)))
    return Load(clients, tuple(jobs))


@dataclass(frozen=True)
class Answer:
    """When a job was sent and when each of its tokens came, in seconds of one clock."""

    sent_seconds: float
    token_seconds: tuple[float, ...]


@dataclass(frozen=True)
class Served:
    """What came of a load. `busy_seconds`: until then every client had a request under way."""

    began_seconds: float
    busy_seconds: float
    answers: tuple[Answer, ...]

    def write(self, path: Path) -> None:
        """It appears whole or not at all."""
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.rename(path)

    @classmethod
    def read(cls, path: Path) -> Served:
        found = json.loads(path.read_text())
        answers = (Answer(a["sent_seconds"], tuple(a["token_seconds"])) for a in found["answers"])
        return cls(found["began_seconds"], found["busy_seconds"], tuple(answers))


def incomplete(load: Load, served: Served) -> Sequence[str]:
    """What wasn't answered as asked, in words; no jobs left out unless the time ran out."""
    return [
        f"job {i} gave {len(answer.token_seconds)} tokens of {job.output_tokens}"
        for i, (job, answer) in enumerate(zip(load.jobs, served.answers, strict=False))
        if len(answer.token_seconds) != job.output_tokens
    ]
