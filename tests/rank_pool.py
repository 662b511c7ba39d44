"""A pool of long-lived rank processes: starting torch is what costs, so parity cases share them.

Each process serves one case after the other: it joins a fresh job, runs it, leaves, answers.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import msgpack

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RankPool:
    """`run` gives one case to the first `world_size` processes and returns their answers."""

    def __init__(self, size: int):
        key = secrets.token_bytes(16)
        self._processes = []
        self._ranks: list[Connection] = []
        with Listener(("127.0.0.1", 0), authkey=key) as listener:
            for _ in range(size):
                command = [sys.executable, "-m", "tests.rank_pool", str(listener.address[1])]
                environment = {**os.environ, "POOL_KEY": key.hex(), "OMP_NUM_THREADS": "1"}
                self._processes.append(subprocess.Popen(command, cwd=ROOT, env=environment))
            for _ in range(size):
                self._ranks.append(listener.accept())

    def run(self, case: str, world_size: int, **arguments: Any) -> list[Any]:
        """`case` is 'module:function'; it is called as `function(rank, **arguments)`."""
        body = {"case": case, "world_size": world_size, "port": free_port(), "arguments": arguments}
        for rank, connection in enumerate(self._ranks[:world_size]):
            connection.send_bytes(msgpack.packb({**body, "rank": rank}))
        answers = [
            msgpack.unpackb(c.recv_bytes(), strict_map_key=False) for c in self._ranks[:world_size]
        ]
        errors = [a["error"] for a in answers if "error" in a]
        assert not errors, errors[0]
        return [a["value"] for a in answers]

    def close(self) -> None:
        for connection in self._ranks:
            connection.close()
        for process in self._processes:
            process.wait(timeout=30)


def _serve(port: int) -> None:
    import importlib
    import traceback

    connection = Client(("127.0.0.1", port), authkey=bytes.fromhex(os.environ["POOL_KEY"]))
    while True:
        try:
            body = msgpack.unpackb(connection.recv_bytes(), strict_map_key=False)
        except EOFError:
            return
        rank, world = str(body["rank"]), str(body["world_size"])
        os.environ.update(
            RANK=rank,
            LOCAL_RANK=rank,
            WORLD_SIZE=world,
            LOCAL_WORLD_SIZE=world,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(body["port"]),
        )
        module, _, function = body["case"].partition(":")
        try:
            value = getattr(importlib.import_module(module), function)(
                int(rank), **body["arguments"]
            )
            answer = {"value": value}
        except Exception:
            answer = {"error": traceback.format_exc()}
        connection.send_bytes(msgpack.packb(answer))


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
