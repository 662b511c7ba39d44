"""transformers' own continuous batching, in one process and without HTTP:
`python -m benchmarks.peers.continuous --model D --loads D --results D …`."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.load.jobs import Answer, Load, Served
from benchmarks.peers.drivers import answer_loads, driver_arguments

_STEP_TOKENS = 512
_CACHE_BYTES = 2 * 1024**3
_WAIT_SECONDS = 60.0


def main() -> None:
    arguments = driver_arguments(__doc__)
    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype="auto", attn_implementation="sdpa"
    )
    greedy = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1
    )
    batching = ContinuousBatchingConfig(
        max_batch_tokens=_STEP_TOKENS,
        max_memory_percent=_CACHE_BYTES / psutil.virtual_memory().total,
    )
    with (
        torch.no_grad(),
        model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=batching
        ) as manager,
    ):
        answer_loads(
            arguments,
            lambda load: serve(manager, Load(1, load.jobs[-1:]), arguments.seconds),
            lambda load: serve(manager, load, arguments.seconds),
            first_rank=True,
        )


def serve(manager: Any, load: Load, seconds: float) -> Served:
    """A closed loop: an answer that is whole is followed by that client's next request."""
    began = time.perf_counter()
    sent: dict[str, tuple[int, float]] = {}
    answers: dict[int, Answer] = {}
    jobs = iter(enumerate(load.jobs))
    busy = None

    def send() -> None:
        nonlocal busy
        now = time.perf_counter()
        following = next(jobs, None) if now < began + seconds else None
        if following is None:
            busy = busy or now
            return
        i, job = following
        name = manager.add_request(
            list(job.prompt), max_new_tokens=job.output_tokens, record_timestamps=True
        )
        sent[name] = i, now

    for _ in range(load.clients):
        send()
    while sent:
        result = manager.get_result(timeout=_WAIT_SECONDS)
        if result is None or result.error is not None:
            raise SystemExit(f"no answer: {result and result.error}")
        if result.is_finished():
            i, at = sent.pop(result.request_id)
            answers[i] = Answer(at, tuple(result.timestamps))
            send()
    end = busy or time.perf_counter()
    return Served(began, end, tuple(answers[i] for i in sorted(answers)))


if __name__ == "__main__":
    main()
