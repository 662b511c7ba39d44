"""Safetensors headers and model directories: every place exact, every damage named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from parallel.architecture.checkpoint import build_spec, load_spec, read_config
from parallel.architecture.families import FAMILIES
from parallel.architecture.spec import ModelSpec
from parallel.architecture.tensors import INDEX, SINGLE, read_header, read_tensors
from parallel.errors import CheckpointError
from parallel.precision import precision
from tests.specs import Config, small_config, small_spec


def stored_tensors(spec: ModelSpec, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Random values for each stored tensor of the spec."""
    shapes = {p.source.name: p.source.shape for p in spec.parameters}
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def write_model(folder: Path, config: Config, dtype: torch.dtype = torch.float32) -> Path:
    """A checkpoint directory in one file."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(stored_tensors(build_spec(config, None, "any"), dtype), folder / SINGLE)
    return folder


def write_header(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


# ---------------------------------------------------------------------------- tensor headers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bytes_at_the_place_are_the_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = stored_tensors(small_spec(), dtype)
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    found = read_tensors(tmp_path)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        stored, data = found[name], Path(found[name].place.file).read_bytes()
        assert stored.shape == tuple(tensor.shape)
        assert stored.precision.torch == str(dtype).removeprefix("torch.")
        there = bytearray(data[stored.place.start : stored.place.end])
        assert torch.equal(torch.frombuffer(there, dtype=dtype).view(tensor.shape), tensor)


def write_sharded(folder: Path, config: Config) -> dict[str, str]:
    """Tensors dealt over three files, with an index; returns the index's map."""
    (folder / "config.json").write_text(json.dumps(config))
    tensors = stored_tensors(build_spec(config, None, "any"), torch.float32)
    weight_map = {}
    for part in range(3):
        file = f"model-{part + 1:05d}-of-00003.safetensors"
        own = {n: t for i, (n, t) in enumerate(tensors.items()) if i % 3 == part}
        save_file(own, folder / file)
        weight_map |= dict.fromkeys(own, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def test_sharded_index(tmp_path: Path) -> None:
    weight_map = write_sharded(tmp_path, small_config())
    spec = load_spec(tmp_path)
    for p in spec.parameters:
        assert p.source.place is not None
        assert Path(p.source.place.file) == tmp_path / weight_map[p.source.name]
        assert p.source.place.end - p.source.place.start == 4 * p.elements


def test_missing_shard_file(tmp_path: Path) -> None:
    weight_map = write_sharded(tmp_path, small_config())
    gone = sorted(set(weight_map.values()))[1]
    (tmp_path / gone).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 file\(s\).*{gone}.*finish the download"):
        load_spec(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"weight_map": 3}'])
def test_damaged_index(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="is not a safetensors index"):
        read_tensors(tmp_path)


def test_truncated_file(tmp_path: Path) -> None:
    write_model(tmp_path, small_config())
    whole = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(whole[:-5])
    with pytest.raises(CheckpointError, match=r"is truncated.*copy it again"):
        load_spec(tmp_path)
    for kept, words in ((0, "no header"), (7, "no header"), (100, "cut short or not JSON")):
        (tmp_path / SINGLE).write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=words):
            load_spec(tmp_path)


F32_OF_4 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"not json", "is damaged: its header"),
        (b"\xff\xfe\x00\x00", "is damaged: its header"),
        ([1, 2], "is damaged: its header"),
        ({"w": 3}, "entry of 'w' is damaged"),
        ({"w": {"dtype": "F32", "shape": [2, 2]}}, "entry of 'w' is damaged"),
        ({"w": {**F32_OF_4, "data_offsets": [0]}}, "entry of 'w' is damaged"),
        ({"w": {**F32_OF_4, "dtype": "I8"}}, "'w' is stored as I8; only F32, F16 and BF16"),
        ({"w": {**F32_OF_4, "data_offsets": [0, 12]}}, "should take 16 bytes, its range has 12"),
        ({"w": {**F32_OF_4, "data_offsets": [-4, 12]}}, "entry of 'w' is damaged"),
        ({"w": {**F32_OF_4, "shape": [-2, -2]}}, "entry of 'w' is damaged"),
        ({"w": {**F32_OF_4, "data_offsets": [8, 24]}}, "is truncated: 'w'"),
    ],
)
def test_damaged_header(tmp_path: Path, header: Any, words: str) -> None:
    path = write_header(tmp_path / SINGLE, header, bytes(16))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


# ---------------------------------------------------------------------------- directories


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_alone_gives_the_same_parameters(tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path / "model", small_config(family, dtype="float16"), torch.float16)
    with_files, alone = load_spec(folder), load_spec(folder / "config.json")
    assert with_files.name == alone.name == "model"
    assert [(p.name, p.shape, p.source.shape) for p in alone.parameters] == [
        (p.name, p.shape, p.source.shape) for p in with_files.parameters
    ]
    assert alone.stored_precision == with_files.stored_precision == precision("fp16")
    assert all(p.source.place is None for p in alone.parameters)
    assert all(p.source.place is not None for p in with_files.parameters)
    assert all(p.source.place is None for p in load_spec(folder, weights=False).parameters)


def test_stored_precision_is_the_files_own(tmp_path: Path) -> None:
    write_model(tmp_path, small_config(dtype="bfloat16"), torch.float32)
    assert load_spec(tmp_path).stored_precision == precision("fp32")


def test_tensors_without_the_family_prefix(tmp_path: Path) -> None:
    """GPT-2's own checkpoint names its tensors without 'transformer.'."""
    config = small_config("gpt2")
    tensors = stored_tensors(build_spec(config, None, "any"), torch.float32)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({n.removeprefix("transformer."): t for n, t in tensors.items()}, tmp_path / SINGLE)
    spec = load_spec(tmp_path)
    assert {p.source.name for p in spec.parameters} == {
        n.removeprefix("transformer.") for n in tensors
    }


def test_missing_and_misshapen_tensors(tmp_path: Path) -> None:
    config = small_config()
    tensors = stored_tensors(build_spec(config, None, "any"), torch.float32)
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({n: t for n, t in tensors.items() if n != name}, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match=f"lacks tensor '{name}'"):
        load_spec(tmp_path)
    save_file({**tensors, name: torch.zeros(3, 5)}, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match=r"has shape \[3, 5\].*calls for \[72, 48\]"):
        load_spec(tmp_path)


def test_directories_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_spec(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_spec(tmp_path / "nowhere")
    for text, words in (("{", "is not JSON"), ("[1]", "holds no JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=words):
            read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(small_config()))
    assert load_spec(tmp_path).layers == 3
    with pytest.raises(CheckpointError, match="no weights in"):
        load_spec(tmp_path, weights=True)


@pytest.mark.parametrize(("value", "ids"), [(7, (7,)), ([7, 9], (7, 9)), (None, (3,))])
def test_end_of_sequence_ids(tmp_path: Path, value: Any, ids: tuple[int, ...]) -> None:
    """generation_config.json goes before config.json."""
    config = small_config(eos_token_id=3, bos_token_id=1)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    spec = load_spec(tmp_path)
    assert (spec.eos_token_ids, spec.bos_token_id) == (ids, 1)
