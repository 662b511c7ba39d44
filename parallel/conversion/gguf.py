"""A GGUF file → an ordinary Hugging Face directory with bf16 weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import dequantize
from numpy.typing import NDArray

from parallel.architecture.checkpoint import build_spec
from parallel.architecture.tensors import SINGLE
from parallel.conversion.bfloat16 import write_bfloat16
from parallel.conversion.facts import generation_config, model_config
from parallel.conversion.names import (
    ROTARY_FACTORS,
    hugging_face_name,
    rotated_projection,
    unpermute,
)
from parallel.conversion.progress import byte_bar
from parallel.conversion.reader import GgufFile
from parallel.conversion.vocabulary import build_tokenizer, chat_template, tokenizer_config
from parallel.errors import CheckpointError

REVISION = 1
"""Raised when the same GGUF is to give other files than before."""


def convert_gguf(gguf_path: Path, directory: Path, progress: bool = True) -> None:
    """Writes config, weights, tokenizer and chat template into `directory`, which exists.

    One tensor at a time is in memory. Raises `CheckpointError` for a file that is damaged, or
    of an architecture or tokenizer that isn't known."""
    file = GgufFile(gguf_path)
    config = model_config(file)
    shapes = _checked_shapes(file, config)
    tokenizer = build_tokenizer(file)
    template = chat_template(file)
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", generation_config(file))
    _write_json(directory / "tokenizer_config.json", tokenizer_config(file))
    if template:
        (directory / "chat_template.jinja").write_text(template)
    tokenizer.save(str(directory / "tokenizer.json"))
    write_bfloat16(directory / SINGLE, shapes, _tensors(file, config, progress))


def _checked_shapes(file: GgufFile, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape by name in file order; exactly the tensors that the config calls for."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in file.tensors.items():
        if name == ROTARY_FACTORS:
            continue
        known = hugging_face_name(name)
        if known is None:
            raise CheckpointError(f"{file.path}: tensor '{name}' is not one of a known model")
        shapes[known] = tuple(int(n) for n in reversed(tensor.shape))
    spec = build_spec(config, None, file.path.stem)
    expected = {p.source.name: p.source.shape for p in spec.parameters}
    for name in sorted(expected.keys() | shapes.keys()):
        if shapes.get(name) != expected.get(name):
            raise CheckpointError(
                f"{file.path} doesn't hold the model that its metadata describes: '{name}' is "
                f"{shapes.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}; "
                "get a complete GGUF"
            )
    return shapes


def _tensors(
    file: GgufFile, config: Mapping[str, Any], progress: bool
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    todo = {name: t for name, t in file.tensors.items() if name != ROTARY_FACTORS}
    total_bytes = sum(2 * prod(int(n) for n in t.shape) for t in todo.values())
    with byte_bar(total_bytes, f"converting {file.path.name}", progress) as bar:
        for name, tensor in todo.items():
            try:
                values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
            except NotImplementedError as error:
                raise CheckpointError(f"{file.path}: tensor '{name}': {error}") from error
            projection = rotated_projection(name) if file.architecture == "llama" else None
            if projection:
                values = unpermute(values, heads[projection])
            known = hugging_face_name(name)
            assert known is not None, name
            yield known, values
            bar.update(2 * values.size)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
