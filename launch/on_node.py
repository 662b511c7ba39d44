"""A job's task on one node: torchrun, and an end without a traceback when a signal ends the job.

    python -m launch.on_node --nnodes 2 --node-rank 0 --master-addr HEAD … launch/serve.py tp=2

Arguments are torchrun's. It may take torchrun's place on any machine.
"""

from __future__ import annotations

import logging
import os
import sys

from launch.entry import EXIT_DONE
from launch.ranks import allow_drain, failed_code


def main(arguments: list[str]) -> int:
    """0 when all ended well or a signal ended them, 2 if a rank found a user's error, else 1."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    allow_drain(arguments, os.environ)
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        return failed_code(error.failures)
    except SignalException:
        return EXIT_DONE
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
