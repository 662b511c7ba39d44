"""The exceptions of Tessera: one tree, each message says what to do.

A `UserError` is the user's to mend: launchers print its message alone, without a
traceback, and exit with status 2. A `RunError` is a failure of a run that was
accepted (a rank that died, a collective that timed out): exit status 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TesseraError(Exception):
    """Root of every error this project raises on purpose."""


class UserError(TesseraError):
    """The input can't be used as given; the message says what would be legal."""


class ConfigError(UserError):
    """A key or a value of the configuration is unknown or out of range."""


class CheckpointError(UserError):
    """A model directory is missing, incomplete, damaged or of an unknown kind."""


class HardwareError(UserError):
    """A cluster file is wrong, or a device that was asked for is not there."""


class LayoutError(UserError):
    """The model can't be split as asked; names the nearest legal choices."""


class CapacityError(UserError):
    """The model doesn't fit; carries the numbers and the cheapest change."""


class RequestError(UserError):
    """One request is unacceptable: `param` names the field at fault."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.param = param
        self.code = code


class RunError(TesseraError):
    """An accepted run failed."""


class CollectiveTimeout(RunError):
    """A collective didn't end in time; names rank, operation, shape and who is missing."""


class RankDied(RunError):
    """A process of the job ended before its time; names the rank."""


class CaptureError(RunError):
    """Work that can't be captured in a graph; it can still be done without one."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
