"""The error of a KV cache in eight bits, on the default model or another, in one run:
`python benchmarks/cache_accuracy.py [--model DIR] [--tokens 64] [--weights bf16]`.

A few prompts are continued greedily with the cache in the arithmetic's format. Then the same tokens
are fed again with each other format of the cache, and the logits of every step are compared: the
divergence of the distributions KL(reference ‖ other), the largest difference of a logit, and how
often the likeliest token is the same. Prompts are computed in two chunks, so that all but the first
tokens read what was stored.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from launch.entry import CONFIGS
from parallel.architecture.checkpoint import load_spec
from parallel.collectives.mesh import MeshOptions
from parallel.conversion.default_model import ensure_default_model
from parallel.conversion.progress import say
from parallel.devices.cpu import CpuDevice
from parallel.hardware.catalogue import load_cluster
from parallel.layout.degrees import Degrees
from parallel.layout.layout import Layout
from parallel.planner.formats import choose_formats
from parallel.planner.limits import Budget, EngineLimits, Workload
from parallel.planner.memory import kv_bytes_per_token
from parallel.planner.plan import Plan, make_plan
from parallel.report.render import make_console, make_table, write_table
from parallel.requests.types import Sampling
from parallel.runtime.job import RankJob
from parallel.runtime.sequences import Chunk, StepMessage
from parallel.text.tokenizer import Tokenizer

PROMPTS = (
    "The capital of France is Paris. The capital of Italy is",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    'def fibonacci(n):\n    """The n-th number of the sequence."""\n',
    "Water boils at 100 degrees Celsius at sea level, because",
    "List three causes of the First World War, with a sentence for each:\n1.",
    "Dear Ms. Jones,\n\nThank you for your letter of 5 March. We are pleased to",
    "The derivative of x^3 + 2x is 3x^2 + 2. The derivative of",
    "In 1969 the first people walked on the Moon. Their names were",
)
CACHES = ("int8", "fp8")


@dataclass(frozen=True)
class Difference:
    """Over all compared tokens: mean divergence in nats, largest difference of a logit, root of its
    mean square, and the share of tokens that are the likeliest in both."""

    tokens: int
    divergence: float
    largest: float
    root_mean_square: float
    agreement: float


def main() -> None:
    arguments = _arguments()
    directory = arguments.model or ensure_default_model()
    tokenizer = Tokenizer.load(directory)
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    reference, tokens = logits_of(directory, arguments.weights, None, prompts, arguments.tokens)
    table = make_table("cache|bytes a token|tokens|mean KL|max Δ logit|rms Δ logit|same token", 1)
    for cache in CACHES:
        found, _ = logits_of(directory, arguments.weights, cache, prompts, arguments.tokens, tokens)
        d = difference(reference, found)
        size = str(bytes_per_token(directory, arguments.weights, cache))
        figures = f"{d.divergence:.2e}", f"{d.largest:.3f}", f"{d.root_mean_square:.4f}"
        table.add_row(cache, size, str(d.tokens), *figures, f"{d.agreement:.1%}")
    write_table(make_console(), table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a directory; the default model unless given")
    parser.add_argument("--tokens", type=int, default=64, help="generated after each prompt")
    parser.add_argument("--weights", default="stored", help="fp32 or bf16; as stored unless given")
    return parser.parse_args()


def plan_of(directory: Path, weights: str, cache: str | None) -> Plan:
    """One rank with room for all prompts; attention is the form that takes every cache."""
    spec = load_spec(directory, weights=True)
    limits = EngineLimits(512, len(PROMPTS), context_tokens=256, attention="sdpa")
    return make_plan(
        Layout.make(spec, Degrees()),
        load_cluster("local", CONFIGS / "clusters", ranks=1),
        choose_formats(spec, weights, cache=cache),
        limits,
        Workload(128, 128, len(PROMPTS)),
        Budget(8.0),
    )


def bytes_per_token(directory: Path, weights: str, cache: str | None) -> int:
    plan = plan_of(directory, weights, cache)
    return kv_bytes_per_token(plan.layout, 0, plan.formats)


def logits_of(
    directory: Path,
    weights: str,
    cache: str | None,
    prompts: list[list[int]],
    count: int,
    given: list[list[int]] | None = None,
) -> tuple[torch.Tensor, list[list[int]]]:
    """[count, prompts, vocabulary] in float32, and the tokens fed: the likeliest, or those
    `given`."""
    say(f"cache in {cache or 'the format of arithmetic'}")
    plan = plan_of(directory, weights, cache)
    job = RankJob(plan, 0, CpuDevice(torch.get_num_threads()), MeshOptions())
    try:
        job.load(lambda _: None)
        return _steps(job, prompts, count, given)
    finally:
        job.close()


def _steps(
    job: RankJob, prompts: list[list[int]], count: int, given: list[list[int]] | None
) -> tuple[torch.Tensor, list[list[int]]]:
    model, seen = job.worker.model, list[torch.Tensor]()
    project = model.logits

    def logits(hidden: torch.Tensor, step: object) -> torch.Tensor:
        seen.append(project(hidden, step).clone())  # type: ignore[arg-type]
        return seen[-1]

    model.logits = logits  # type: ignore[method-assign]
    limits = job.plan.limits
    pages = -(-limits.context(1 << 30) // limits.block_tokens)
    greedy = Sampling().to_wire()
    joined = [
        (i, prompt, list(range(i * pages, (i + 1) * pages)), greedy)
        for i, prompt in enumerate(prompts)
    ]
    halves = [Chunk(i, 0, len(p) // 2, False) for i, p in enumerate(prompts)]
    rests = [
        Chunk(i, h.count, len(p) - h.count, True)
        for i, (p, h) in enumerate(zip(prompts, halves, strict=True))
    ]
    job.worker.run(StepMessage(0, "prefill", [], [], joined, halves))
    chunks, fresh = rests, list[tuple[int, int]]()
    tokens: list[list[int]] = [[] for _ in prompts]
    for number in range(count):
        phase = "decode" if number else "prefill"
        result = job.worker.run(StepMessage(number + 1, phase, fresh, [], [], chunks))
        fresh = []
        for i in range(len(prompts)):
            token = result.choices[i].token if given is None else given[i][number]
            tokens[i].append(token)
            fresh.append((i, token))
        chunks = [Chunk(i, len(p) + number, 1, True) for i, p in enumerate(prompts)]
    return torch.stack(seen), tokens


def difference(reference: torch.Tensor, other: torch.Tensor) -> Difference:
    """Of logits [..., vocabulary]."""
    delta = (other - reference).double()
    kl = torch.nn.functional.kl_div(
        other.log_softmax(-1).double(),
        reference.log_softmax(-1).double(),
        log_target=True,
        reduction="none",
    ).sum(-1)
    same = reference.argmax(-1) == other.argmax(-1)
    return Difference(
        same.numel(),
        kl.mean().item(),
        delta.abs().max().item(),
        delta.square().mean().sqrt().item(),
        same.double().mean().item(),
    )


if __name__ == "__main__":
    main()
