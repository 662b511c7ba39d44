"""Builds DeepSpeed's shared-memory operator, once for each user and version, and loads it.

Importing all of DeepSpeed for it would cost two seconds: its sources are found without.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
from pathlib import Path
from types import ModuleType

from parallel.devices.building import build_once, library_file

_NAME = "tessera_shm_comm"


def library_path() -> Path:
    return library_file(_NAME, importlib.metadata.version("deepspeed"))


def build_operator() -> None:
    """Compiles the library if it isn't there. Raises `RunError` with the compiler's words."""
    build_once(library_path(), "DeepSpeed's shared-memory all-reduce", _compile, "")


def _compile(work: Path) -> None:
    from torch.utils import cpp_extension

    found = importlib.util.find_spec("deepspeed")
    assert found is not None and found.origin is not None
    sources = Path(found.origin).parent / "ops" / "csrc" / "cpu"
    cpp_extension.load(
        name=_NAME,
        sources=[str(sources / "comm" / f) for f in ("shm_interface.cpp", "shm.cpp")],
        extra_include_paths=[str(sources / "includes")],
        extra_cflags=["-O2", "-fopenmp"],
        build_directory=str(work),
    )


def load_operator() -> ModuleType:
    """The built library. Raises `ImportError` or `OSError` when it doesn't load."""
    library = library_path()
    loader = importlib.machinery.ExtensionFileLoader(_NAME, str(library))
    spec = importlib.util.spec_from_file_location(_NAME, library, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
