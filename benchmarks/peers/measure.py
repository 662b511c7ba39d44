"""Times `generate` of a transformers model, whoever sharded it."""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.workload import NEW_TOKENS, Measurement, decoded_tokens, read_prompts

_WARM_UP_TOKENS = 4


class TokenTimes(StoppingCriteria):
    """Asked after every token; never stops, but remembers when it was asked."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.seconds.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def peer_arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, type=Path, help="a checkpoint directory")
    parser.add_argument("--prompts", required=True, type=Path, help="JSON lines of token ids")
    parser.add_argument("--threads", required=True, type=int, help="of each rank")
    return parser.parse_args()


@torch.inference_mode()
def measure(model: Any, prompts: Path) -> Measurement:
    """Greedy, the end token ignored; a few tokens of warm-up come before the clock starts."""
    ids = torch.tensor(read_prompts(prompts))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    _generate(model, ids, _WARM_UP_TOKENS)
    times = TokenTimes()
    began = time.perf_counter()
    output = _generate(model, ids, NEW_TOKENS, times)
    if output.shape != (len(ids), ids.shape[1] + NEW_TOKENS) or len(times.seconds) != NEW_TOKENS:
        raise SystemExit(f"{tuple(output.shape)} ids after {len(times.seconds)} steps: not asked")
    decode_seconds = times.seconds[-1] - times.seconds[0]
    return Measurement(
        decode_tokens_per_second=decoded_tokens(len(ids)) / decode_seconds,
        decode_seconds=decode_seconds,
        prefill_seconds=times.seconds[0] - began,
        peak_rss_bytes=_peak_rss_bytes(),
    )


def print_on_first_rank(measurement: Measurement) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(measurement.to_line(), flush=True)


def _generate(
    model: Any, ids: torch.Tensor, tokens: int, times: TokenTimes | None = None
) -> torch.Tensor:
    output: torch.Tensor = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        stopping_criteria=StoppingCriteriaList([times] if times else []),
    )
    return output


def _peak_rss_bytes() -> int:
    """The largest of all ranks'; Linux counts `ru_maxrss` in KiB."""
    peak = torch.tensor(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    if dist.is_initialized():
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    return int(peak)
