"""`model=` → a Hugging Face directory: the default model, a directory, or a GGUF file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from parallel.conversion.cache import cache_directory, ensure_made
from parallel.conversion.default_model import (
    DEFAULT_MODEL,
    default_config_path,
    ensure_default_model,
)
from parallel.errors import CheckpointError, did_you_mean

DEFAULT_WORDS = (DEFAULT_MODEL.name, "default")


def is_default(model: str | Path | None) -> bool:
    """None, 'default' or the default model's name, in upper or lower case."""
    return model is None or str(model).lower() in [word.lower() for word in DEFAULT_WORDS]


def resolve_model(model: str | Path | None, progress: bool = True) -> Path:
    """The directory to load; a GGUF file is converted into the user's cache first."""
    if model is None or is_default(model):
        return ensure_default_model(progress)
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf" and path.is_file():
        return _converted(path.resolve(), progress)
    raise CheckpointError(
        f"model={model} does not exist{did_you_mean(str(model), DEFAULT_WORDS)}; give a directory "
        f"with config.json and safetensors files, a .gguf file, or '{DEFAULT_MODEL.name}'"
    )


def resolve_config(model: str | Path | None, progress: bool = True) -> Path:
    """Where to plan from: as `resolve_model`, but the default model needs no download."""
    if model is None or is_default(model):
        return default_config_path()
    path = Path(model).expanduser()
    return path if path.name == "config.json" else resolve_model(path, progress)


def _converted(path: Path, progress: bool) -> Path:
    """Converted once per file: its place, size and time of change tell it from others."""
    from parallel.conversion.gguf import REVISION, convert_gguf

    facts = path.stat()
    stamp = {
        "source": str(path),
        "bytes": facts.st_size,
        "modified_ns": facts.st_mtime_ns,
        "revision": REVISION,
    }
    mark = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    directory = cache_directory() / "models" / f"{path.stem}-{mark}"
    return ensure_made(
        directory, stamp, lambda _, target: convert_gguf(path, target, progress), progress
    )
