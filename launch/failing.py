"""How a rank ends when something goes wrong."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from launch.entry import EXIT_FAILED, EXIT_USER, is_first_rank
from parallel.errors import TesseraError, UserError


@contextmanager
def ending_at_failure() -> Iterator[None]:
    """Other ranks may hang in native code and gloo aborts in a plain exit: a failure ends the
    process at once, with its message and exit code."""
    try:
        yield
    except TesseraError as error:
        where = "" if is_first_rank() else f"rank {os.environ['RANK']}: "
        print(f"error: {where}{error}", file=sys.stderr, flush=True)
        os._exit(EXIT_USER if isinstance(error, UserError) else EXIT_FAILED)
    except Exception:
        # A peer that died shows first as an error of gloo or NCCL: let the lifeline name it.
        time.sleep(1.0)
        traceback.print_exc()
        os._exit(EXIT_FAILED)
