"""Answers loads by `generate` of a transformers model, whoever sharded it: what waits when a batch
begins is its batch, padded on the left, and lasts until its longest answer is whole."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.load.jobs import Answer, Job, Load, Served
from benchmarks.peers.drivers import answer_loads

_WARM_UP_TOKENS = 4
Generate = Callable[[Sequence[Job]], list[list[float]]]
"""A batch of jobs → when each token of each came."""


class TokenTimes(StoppingCriteria):
    """Asked after every token; never stops, but remembers when it was asked."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.seconds.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def answer(model: Any, arguments: argparse.Namespace) -> None:
    """All loads. Ranks stay in step: the first one says whether another batch begins."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    answer_loads(
        arguments,
        lambda load: generate_batch(model, load.jobs[: load.clients], _WARM_UP_TOKENS),
        lambda load: serve(load, lambda jobs: generate_batch(model, jobs), arguments.seconds),
        first_rank=not dist.is_initialized() or dist.get_rank() == 0,
    )


def serve(load: Load, generate: Generate, seconds: float) -> Served:
    """A client sends its next request when its last answer is whole, and waits for the batch."""
    began = time.perf_counter()
    sent = [began] * load.clients
    answers: list[Answer] = []
    for first in range(0, len(load.jobs), load.clients):
        if not _agreed(time.perf_counter() < began + seconds):
            break
        jobs = load.jobs[first : first + load.clients]
        stamps = generate(jobs)
        answers += [Answer(at, tuple(times)) for at, times in zip(sent, stamps, strict=False)]
        sent = [times[-1] for times in stamps]
    return Served(began, time.perf_counter(), tuple(answers))


def _agreed(own: bool) -> bool:
    if not dist.is_initialized():
        return own
    answer = torch.tensor(int(own))
    dist.broadcast(answer, 0)
    return bool(answer)


@torch.inference_mode()
def generate_batch(model: Any, jobs: Sequence[Job], most: int | None = None) -> list[list[float]]:
    width = max(len(job.prompt) for job in jobs)
    ids = torch.tensor([[0] * (width - len(job.prompt)) + list(job.prompt) for job in jobs])
    mask = torch.tensor([[0] * (width - len(j.prompt)) + [1] * len(j.prompt) for j in jobs])
    tokens = most or max(job.output_tokens for job in jobs)
    times = TokenTimes()
    output = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=tokens,
        do_sample=False,
        stopping_criteria=StoppingCriteriaList([times]),
    )
    if output.shape != (len(jobs), width + tokens) or len(times.seconds) != tokens:
        raise SystemExit(f"{tuple(output.shape)} ids after {len(times.seconds)} steps: not asked")
    return [times.seconds[: job.output_tokens] for job in jobs]
