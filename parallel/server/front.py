"""The front process: `python -m parallel.server.front`, started by rank 0.

Its standard input brings the settings in one line, then commands, and its end says that rank 0 is
gone. Its standard output carries JSON lines for rank 0: router, listening, ready, then stopped, or
failed or lost with a message.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import uvicorn

from parallel.errors import RunError, UserError
from parallel.requests.router import Router
from parallel.requests.wire import Listener, listen
from parallel.server.app import make_app
from parallel.server.binding import bind_port
from parallel.server.generations import Generation, recovery
from parallel.server.metrics import Metrics
from parallel.server.service import Service, State
from parallel.server.settings import FrontSettings
from parallel.text.chat import ChatTemplate
from parallel.text.tokenizer import Tokenizer

EXIT_DONE, EXIT_LOST, EXIT_USER = 0, 1, 2
_FLUSH_SECONDS = 2
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.05
_HANDOVER_SECONDS = 30.0
"""How long the front of a generation that died may keep its port."""


class Announcer:
    """JSON lines to rank 0. Whatever else is printed goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)

    def say(self, kind: str, **facts: object) -> None:
        with suppress(BrokenPipeError):  # rank 0 is gone; the end of standard input says so too
            self._out.write(json.dumps({"type": kind, **facts}).encode() + b"\n")


class Ending(Enum):
    DRAIN = "drain"
    LOST = "lost"
    ORPHANED = "orphaned"


class _Server(uvicorn.Server):
    """Leaves signals to the front, which drains before this server shuts down."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Front:
    """Everything between a bound port and the exit; lives in the event loop's thread."""

    def __init__(
        self,
        settings: FrontSettings,
        announcer: Announcer,
        tokenizer: Tokenizer,
        listener: Listener,
        generation: Generation,
    ):
        self._generation = generation
        self._loop = asyncio.get_running_loop()
        self._settings, self._announcer = settings, announcer
        self._ending: asyncio.Future[Ending] = self._loop.create_future()
        metrics = Metrics(settings.model_name, lambda: self._router.status())
        self._router = Router(
            listener,
            settings.replicas,
            on_lost=lambda message: self.call(lambda: self._lose(message)),
            dispatch=self.call,
            on_queued=lambda seconds: metrics.queue_seconds.observe(seconds),
        )
        source = tokenizer.facts.chat_template
        template = None if source is None else ChatTemplate(source, tokenizer.facts.tokens)
        self.service = Service(
            settings, tokenizer, template, self._router, metrics, int(time.time())
        )

    def call(self, work: Callable[[], object]) -> None:
        """Runs `work` in the loop's thread; nothing when the loop has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work)

    def end(self, how: Ending) -> None:
        """The first one counts."""
        if not self._ending.done():
            self._ending.set_result(how)

    async def run(self, bound: socket.socket) -> int:
        """Serves until something ends it. Returns the exit code."""
        self._listening, port = time.time(), bound.getsockname()[1]
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.end, Ending.DRAIN)
        server = _Server(
            uvicorn.Config(
                make_app(self.service),
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=_FLUSH_SECONDS,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        while not server.started and not serving.done():
            await asyncio.sleep(_POLL_SECONDS)
        threading.Thread(target=self._await_leaders, name="leaders", daemon=True).start()
        await asyncio.wait((serving, self._ending), return_when=asyncio.FIRST_COMPLETED)
        how = self._ending.result() if self._ending.done() else Ending.LOST
        if how is Ending.DRAIN:
            await self._drain()
        else:
            self._generation.ended(port)
            self.service.fail_active("the engine is gone")
        server.should_exit = True
        await serving
        await asyncio.to_thread(self._router.stop, _STOP_SECONDS)
        self.service.close()
        if how is not Ending.DRAIN or self._lost:
            return EXIT_LOST
        self._announcer.say("stopped")
        return EXIT_DONE

    async def _drain(self) -> None:
        """New requests are refused; those under way may end, within `drain_seconds`."""
        self.service.state = State.DRAINING
        deadline = time.monotonic() + self._settings.drain_seconds
        while self.service.active and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
        self.service.fail_active("the server is shutting down; ask another")

    @property
    def _lost(self) -> bool:
        return self.service.state is State.LOST

    def _await_leaders(self) -> None:
        try:
            self._router.wait_ready()
        except RunError:  # stopped or lost while loading; `_lose` says so where it matters
            return
        self.call(self._start)

    def _start(self) -> None:
        self.service.start()
        if self.service.state is State.READY:
            restart = recovery(self._generation, self._listening, time.time())
            self.service.restart = restart
            self._announcer.say("ready", restart=restart)

    def _lose(self, message: str) -> None:
        self.service.state = State.LOST
        self.service.fail_active(message)
        self._announcer.say("lost", message=message)
        self.end(Ending.LOST)


def main() -> int:
    announcer = Announcer()
    commands = sys.stdin.buffer
    settings = FrontSettings.from_json(commands.readline())
    try:
        key = bytes.fromhex(settings.router_key)
        listener = listen(settings.router_host, key)
        announcer.say("router", address=listener.address)
        generation = Generation.of(os.environ)
        patience = _HANDOVER_SECONDS if generation.restarts else 0.0
        bound = bind_port(settings.host, generation.port(settings.port), patience)
        tokenizer = Tokenizer.load(Path(settings.model_directory))
        announcer.say("listening", host=settings.host, port=bound.getsockname()[1])
        return asyncio.run(
            _serve(settings, announcer, tokenizer, listener, bound, commands, generation)
        )
    except UserError as error:
        announcer.say("failed", message=str(error), error=type(error).__name__)
        return EXIT_USER


async def _serve(
    settings: FrontSettings,
    announcer: Announcer,
    tokenizer: Tokenizer,
    listener: Listener,
    bound: socket.socket,
    commands: BinaryIO,
    generation: Generation,
) -> int:
    front = Front(settings, announcer, tokenizer, listener, generation)

    def obey() -> None:
        for line in commands:
            if json.loads(line)["type"] == "drain":
                front.call(lambda: front.end(Ending.DRAIN))
        front.call(lambda: front.end(Ending.ORPHANED))

    threading.Thread(target=obey, name="commands", daemon=True).start()
    return await front.run(bound)


if __name__ == "__main__":
    code = main()
    # Threads may wait in a read that no one will end.
    sys.stderr.flush()
    os._exit(code)
