"""GGUF files as typed metadata and tensors; damage becomes a `CheckpointError`.

Format: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gguf import GGUFReader

from parallel.errors import CheckpointError

T = TypeVar("T", str, int, float)


class GgufFile:
    """An open GGUF file: metadata by key, tensors in file order (memory-mapped)."""

    def __init__(self, path: Path):
        self.path = path
        self.reader = _open(path)
        self.architecture = self.text("general.architecture")
        self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        if self.integer("split.count", 1) > 1:
            raise CheckpointError(
                f"{path} is one part of a split GGUF; join the parts first "
                "(llama-gguf-split --merge)"
            )

    def get(self, key: str) -> Any:
        """The value of `key`; None where the file has no such key."""
        field = self.reader.get_field(key)
        try:
            return None if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{self.path} is damaged: metadata '{key}' is not UTF-8 ({error}); "
                "copy or download it again"
            ) from error

    def text(self, key: str, default: str | None = None) -> str:
        return self._typed(key, str, default)

    def integer(self, key: str, default: int | None = None) -> int:
        return self._typed(key, int, default)

    def number(self, key: str, default: float | None = None) -> float:
        """A float32 as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
        value = float(str(np.float32(self._typed(key, float, default))))
        if not 0 < value < float("inf"):
            raise CheckpointError(
                f"{self.path}: metadata '{key}' is {value}, expected a positive number; "
                "copy or download it again"
            )
        return value

    def token_id(self, role: str) -> int | None:
        value = self.get(f"tokenizer.ggml.{role}_token_id")
        return int(value) if isinstance(value, int) else None

    def _typed(self, key: str, kind: type[T], default: T | None) -> T:
        value = self.get(key)
        if value is None:
            value = default
        if not isinstance(value, kind):
            found = "is missing" if value is None else f"is {value!r:.80}"
            raise CheckpointError(
                f"{self.path}: metadata '{key}' {found}, expected {kind.__name__}; "
                "get a GGUF made by a current convert_hf_to_gguf.py"
            )
        return value


def _open(path: Path) -> GGUFReader:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the path of a GGUF file")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise CheckpointError(
            f"{path} is not a GGUF file: it begins with {magic!r}, expected b'GGUF'; "
            "give a GGUF file, or a directory with config.json and safetensors files"
        )
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, struct.error) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({path.stat().st_size} bytes: {error}); "
            "copy or download it again"
        ) from error
