"""Safetensors headers: every tensor's name, shape, format and place, without reading a weight.

Format: 8 bytes little-endian header length, a JSON header, then the data
(github.com/huggingface/safetensors, README, "Format").
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from parallel.architecture.spec import Place
from parallel.errors import CheckpointError, ConfigError
from parallel.precision import Precision, precision

_MAX_HEADER_BYTES = 100_000_000
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    name: str
    shape: tuple[int, ...]
    precision: Precision
    place: Place


def read_tensors(directory: Path) -> Mapping[str, StoredTensor]:
    """All tensors of a checkpoint directory, from one file or from a sharded index.

    Raises `CheckpointError` when a file is missing, truncated or damaged."""
    index = directory / INDEX
    if index.exists():
        files = sorted(set(_weight_map(index).values()))
    elif (directory / SINGLE).exists():
        files = [SINGLE]
    else:
        raise CheckpointError(
            f"no weights in {directory}: neither {SINGLE} nor {INDEX} is there; "
            "give a directory with safetensors files"
        )
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors.update(read_header(directory / file))
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{index} is not a safetensors index (JSON with a 'weight_map'); copy it again"
        ) from None
    names = {str(k): str(v) for k, v in weight_map.items()}
    missing = sorted({v for v in names.values() if not (index.parent / v).exists()})
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} file(s) that its index names: "
            f"{', '.join(missing[:3])}; finish the download"
        )
    return names


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file; the byte ranges are checked against its size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= _MAX_HEADER_BYTES:
            raise CheckpointError(f"{path} is not a safetensors file (no header); copy it again")
        try:
            header = dict(json.loads(file.read(length)))
        except (ValueError, TypeError):
            raise CheckpointError(
                f"{path} is damaged: its header is cut short or not JSON; copy it again"
            ) from None
    data = 8 + length
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensors[name] = _entry(path, name, entry, data, size)
    return tensors


def _entry(path: Path, name: str, entry: dict[str, object], data: int, size: int) -> StoredTensor:
    try:
        shape = tuple(int(n) for n in entry["shape"])  # type: ignore[attr-defined]
        begin, end = (int(n) for n in entry["data_offsets"])  # type: ignore[attr-defined]
        dtype = str(entry["dtype"])
        if min(begin, *shape, 0) < 0:
            raise ValueError("below zero")
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: the header's entry of '{name}' is damaged") from None
    if data + end > size:
        raise CheckpointError(
            f"{path} is truncated: '{name}' ends at byte {data + end}, the file has {size}; "
            "copy it again"
        )
    try:
        fmt = precision(dtype)
    except ConfigError:
        raise CheckpointError(
            f"{path}: '{name}' is stored as {dtype}; only F32, F16 and BF16 can be read"
        ) from None
    if end - begin != prod(shape) * fmt.bytes:
        raise CheckpointError(
            f"{path}: '{name}' {list(shape)} {dtype} should take {prod(shape) * fmt.bytes} bytes, "
            f"its range has {end - begin}; the file is damaged"
        )
    return StoredTensor(name, shape, fmt, Place(str(path), data + begin, data + end))
