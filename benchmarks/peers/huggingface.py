"""transformers, in one process or with its own tensor parallelism under torchrun:
`torchrun --nproc-per-node 2 -m benchmarks.peers.huggingface --model D --loads D --results D …`."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from benchmarks.peers.drivers import driver_arguments
from benchmarks.peers.static_batches import answer


def main() -> None:
    arguments = driver_arguments(__doc__)
    torch.set_num_threads(arguments.threads)
    split = int(os.environ.get("WORLD_SIZE", "1")) > 1
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype="auto", **({"tp_plan": "auto"} if split else {})
    )
    answer(model, arguments)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
