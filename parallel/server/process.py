"""The front process as rank 0 sees it: started, asked to drain, waited for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import parallel
from parallel.errors import CheckpointError, ConfigError, RunError, TesseraError
from parallel.server.settings import FrontSettings

_ERRORS = {kind.__name__: kind for kind in (CheckpointError, ConfigError)}


class FrontProcess:
    """Ends by itself when this process does: its standard input closes."""

    def __init__(self, settings: FrontSettings):
        root = str(Path(parallel.__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        # A session of its own: a terminal's Ctrl-C goes to the ranks, which let it drain.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "parallel.server.front"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        self._told: dict[str, dict[str, Any]] = {}
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="front-status", daemon=True)
        self._reader.start()
        self._write(settings.to_json())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def router_address(self) -> tuple[str, int]:
        """Where the leaders connect."""
        host, port = self._wait("router", 60.0)["address"]
        return host, port

    def wait_listening(self, timeout: float = 60.0) -> tuple[str, int]:
        """Host and port once bound, long before the model is loaded. Raises `ConfigError` when
        the port can't be had, `CheckpointError` when the model has no usable tokenizer."""
        told = self._wait("listening", timeout)
        return told["host"], told["port"]

    def wait_ready(self, timeout: float | None = None) -> dict[str, Any]:
        """Till it serves: every leader has connected. Returns the report's `restart`. Raises
        `RunError` when one was lost."""
        restart: dict[str, Any] = self._wait("ready", timeout)["restart"]
        return restart

    def drain(self) -> None:
        """Asks it to refuse new requests, finish those it has, stop the leaders and end.
        Returns at once; again does nothing more."""
        self._write('{"type": "drain"}')

    def terminate(self) -> None:
        """Ends it now, whatever it does."""
        self._process.kill()
        self.wait()

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code (0 drained, 1 a leader was lost, 2 a user's error), None after `timeout`
        seconds."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                self._close(pipe)
        return code

    @staticmethod
    def _close(pipe: Any) -> None:
        try:
            pipe.close()
        except BrokenPipeError:  # a command that it didn't live to read
            return

    def _write(self, line: str) -> None:
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            return
        try:
            stdin.write(line.encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:  # it has ended; whoever waits for it learns so
            return

    def _read(self) -> None:
        stdout = self._process.stdout
        for line in stdout or ():
            message = json.loads(line)
            with self._changed:
                self._told[message["type"]] = message
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait(self, kind: str, timeout: float | None) -> dict[str, Any]:
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or {kind, "failed", "lost"} & self._told.keys(), timeout
            )
            if "failed" in self._told:
                raise self._error(self._told["failed"])
            if kind in self._told:
                return self._told[kind]
            if "lost" in self._told:
                raise RunError(self._told["lost"]["message"])
        if self._ended:
            raise RunError(f"the front process ended before it was {kind}; see its messages above")
        raise RunError(f"the front process was not {kind} within {timeout:g} s")

    @staticmethod
    def _error(told: dict[str, Any]) -> TesseraError:
        return _ERRORS.get(told["error"], RunError)(told["message"])


def spawn_front(settings: FrontSettings) -> FrontProcess:
    """Starts the front process; it binds its ports before it does anything else."""
    return FrontProcess(settings)
