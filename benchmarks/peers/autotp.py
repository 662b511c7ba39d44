"""DeepSpeed's AutoTP on a transformers model, with its shared-memory all-reduce, under torchrun:
`torchrun --nproc-per-node 2 -m benchmarks.peers.autotp --model D --loads D --results D …`."""

from __future__ import annotations

import os
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from benchmarks.peers.drivers import driver_arguments
from benchmarks.peers.static_batches import answer


def main() -> None:
    arguments = driver_arguments(__doc__)
    # Without it the shared-memory operation reads past its buffers.
    os.environ["LOCAL_SIZE"] = os.environ["WORLD_SIZE"]
    torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype="auto")
    engine = deepspeed.init_inference(
        model,
        tensor_parallel={"tp_size": int(os.environ["WORLD_SIZE"])},
        dtype=model.dtype,
        replace_with_kernel_inject=False,
    )
    torch.set_num_threads(arguments.threads)
    try:
        answer(engine.module, arguments)
        dist.barrier()
    finally:
        _remove_buffers()
    dist.destroy_process_group()


def _remove_buffers() -> None:
    """DeepSpeed leaves this rank's share of /dev/shm behind; shm.cpp says how it is called."""
    env = os.environ
    pattern = f"deepspeed_allreduce_buffer_{os.getuid()}_{env['MASTER_ADDR']}_{env['MASTER_PORT']}"
    for path in Path("/dev/shm").glob(f"{pattern}*_{env['RANK']}"):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
