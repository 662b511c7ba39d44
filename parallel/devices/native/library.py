"""The kernels of this folder as `torch.ops.tessera_native`: compiled once for this processor.

Each `*.cpp` is compiled apart, for the instructions of the host; operators register themselves
when the library is loaded (TORCH_LIBRARY_FRAGMENT), with their Meta kernels.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from parallel.devices.building import build_once, library_file
from parallel.errors import RunError
from parallel.hardware.limits import cpp_compiler, cpu_flags

_NAME = "tessera_native"
_WHAT = "the native kernels"
_ADVICE = "; mend what it says, or say engine.kernels=portable to do without them"
_FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fPIC", "-fvisibility=hidden")
_FOLDER = Path(__file__).resolve().parent


def sources() -> list[Path]:
    return sorted(_FOLDER.glob("*.cpp"))


def library_path() -> Path:
    """Another one for other sources, flags or processors."""
    mark = hashlib.sha256(" ".join((*_FLAGS, *sorted(cpu_flags()))).encode())
    for file in (*sources(), *sorted(_FOLDER.glob("*.h"))):
        mark.update(file.name.encode() + file.read_bytes())
    return library_file(_NAME, mark.hexdigest()[:16])


def build() -> Path:
    """The library, compiled if it isn't there yet. Raises `RunError` where it can't be."""
    library = library_path()
    build_once(library, _WHAT, _compile, _ADVICE)
    return library


@cache
def load() -> None:
    """Registers the operators in this process. Raises `RunError` where they can't be had."""
    library = build()
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise RunError(f"{_WHAT} in {library} can't be loaded: {error}{_ADVICE}") from error


def _compile(work: Path) -> None:
    named = cpp_compiler()
    if named is None:
        raise RuntimeError("no C++ compiler on PATH (g++, c++, clang++)")
    compiler = shlex.split(named)
    top = Path(torch.__file__).parent
    include = [f"-isystem{top / 'include'}"]

    def compiled(source: Path) -> str:
        out = work / f"{source.stem}.o"
        _run([*compiler, *_FLAGS, *include, "-c", str(source), "-o", str(out)])
        return str(out)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources()))
    links = [f"-L{top / 'lib'}", "-lc10", "-ltorch_cpu"]
    out = str(work / f"{_NAME}.so")
    _run([*compiler, "-shared", "-fopenmp", *objects, *links, "-o", out])


def _run(command: list[str]) -> None:
    """Raises `RuntimeError` with what the compiler said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
