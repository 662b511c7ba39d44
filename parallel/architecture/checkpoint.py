"""`config.json` and tensor headers → `ModelSpec`. The config alone is enough to plan."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from parallel.architecture.families import FAMILIES, Facts, Family, Stored
from parallel.architecture.spec import ModelSpec, Parameter, Role, Source
from parallel.architecture.tensors import INDEX, SINGLE, StoredTensor, read_tensors
from parallel.errors import CheckpointError, did_you_mean
from parallel.precision import Precision, precision


def read_config(path: Path) -> dict[str, Any]:
    """A `config.json`, given as itself or as the directory that holds it."""
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        what = "has no config.json" if path.is_dir() else "does not exist"
        raise CheckpointError(
            f"model={path} {what}; give a directory with config.json and safetensors files "
            "(for a plan config.json is enough)"
        )
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}); copy it again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds no JSON object; copy it again")
    return config


def load_spec(path: Path, weights: bool | None = None) -> ModelSpec:
    """The spec of a model directory.

    `weights` True requires tensor files, False ignores them, None reads them if they are there."""
    config = read_config(path)
    has_files = path.is_dir() and ((path / SINGLE).exists() or (path / INDEX).exists())
    use_files = has_files if weights is None else weights
    tensors = read_tensors(path) if use_files else None
    name = path.name if path.is_dir() else path.parent.name
    return build_spec(config, tensors, name, _generation_eos(path) or _ids(config, "eos_token_id"))


def build_spec(
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor] | None,
    name: str,
    eos_token_ids: tuple[int, ...] = (),
) -> ModelSpec:
    """Facts and parameters; with `tensors` each parameter is checked and placed.

    Raises `CheckpointError` for unknown families, and missing or misshapen tensors."""
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise CheckpointError(
            f"model_type '{kind}' is not known{did_you_mean(kind, FAMILIES)}; "
            f"known: {', '.join(FAMILIES)}"
        )
    if config.get("quantization_config"):
        raise CheckpointError(
            "config.json has a quantization_config: quantised checkpoints can't be read yet; "
            "give the unquantised one"
        )
    family = FAMILIES[kind]
    facts = family.facts(config)
    fmt = precision(str(config.get("dtype") or config.get("torch_dtype") or "float32"))
    locate = _Locator(family, tensors, fmt)
    parameters = tuple(
        Parameter(role, layer, part, shape, locate(role, layer, part, shape))
        for role, layer, part, shape in _parameters(facts)
    )
    bos = config.get("bos_token_id")
    return ModelSpec(
        name=name,
        family=kind,
        hidden=facts.hidden,
        vocabulary=facts.vocabulary,
        context_tokens=facts.context_tokens,
        blocks=facts.blocks,
        final_norm=facts.final_norm,
        tied_head=facts.tied_head,
        positions=facts.positions,
        parameters=parameters,
        eos_token_ids=eos_token_ids,
        bos_token_id=bos if isinstance(bos, int) else None,
    )


def _ids(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = config.get(key)
    if isinstance(value, int):
        return (value,)
    return tuple(int(v) for v in value) if isinstance(value, list) else ()


def _generation_eos(path: Path) -> tuple[int, ...]:
    file = path / "generation_config.json"
    if not file.is_file():
        return ()
    try:
        return _ids(json.loads(file.read_text()), "eos_token_id")
    except ValueError:
        raise CheckpointError(f"{file} is not JSON; copy it again") from None


Row = tuple[Role, int | None, str, tuple[int, ...]]


def _parameters(facts: Facts) -> Iterator[Row]:
    hidden, vocabulary = facts.hidden, facts.vocabulary
    yield Role.TOKEN_EMBEDDING, None, "weight", (vocabulary, hidden)
    if facts.positions is not None:
        yield Role.POSITION_EMBEDDING, None, "weight", (facts.positions, hidden)
    for i, block in enumerate(facts.blocks):
        a, f = block.attention, block.feed_forward
        q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
        yield from _norm(Role.ATTENTION_NORM, i, block.norm.kind, hidden)
        yield from _matrix(Role.QUERY, i, q, hidden, a.qkv_bias)
        yield from _matrix(Role.KEY, i, kv, hidden, a.qkv_bias)
        yield from _matrix(Role.VALUE, i, kv, hidden, a.qkv_bias)
        if a.qk_norm:
            yield Role.QUERY_NORM, i, "weight", (a.head_dim,)
            yield Role.KEY_NORM, i, "weight", (a.head_dim,)
        yield from _matrix(Role.ATTENTION_OUTPUT, i, hidden, q, a.output_bias)
        yield from _norm(Role.FFN_NORM, i, block.norm.kind, hidden)
        if f.gated:
            yield from _matrix(Role.GATE, i, f.width, hidden, f.bias)
        yield from _matrix(Role.UP, i, f.width, hidden, f.bias)
        yield from _matrix(Role.DOWN, i, hidden, f.width, f.bias)
    yield from _norm(Role.FINAL_NORM, None, facts.final_norm.kind, hidden)
    if not facts.tied_head:
        yield Role.HEAD, None, "weight", (vocabulary, hidden)


def _matrix(role: Role, layer: int, out: int, into: int, bias: bool) -> Iterator[Row]:
    yield role, layer, "weight", (out, into)
    if bias:
        yield role, layer, "bias", (out,)


def _norm(role: Role, layer: int | None, kind: str, hidden: int) -> Iterator[Row]:
    yield role, layer, "weight", (hidden,)
    if kind == "layer":
        yield role, layer, "bias", (hidden,)


class _Locator:
    """Finds the stored tensor of a parameter, and checks its shape."""

    def __init__(self, family: Family, tensors: Mapping[str, StoredTensor] | None, fmt: Precision):
        self.family, self.tensors, self.fmt = family, tensors, fmt

    def __call__(self, role: Role, layer: int | None, kind: str, shape: tuple[int, ...]) -> Source:
        stored = self.family.names[role]
        prefix = "" if role is Role.HEAD else self.family.prefix
        bare = f"{stored.name.format(i=layer)}.{kind}"
        expected = self._stored_shape(stored, kind, shape)
        transposed = stored.transposed and kind == "weight"
        offset = stored.part * shape[0]
        if self.tensors is None:
            return Source(prefix + bare, expected, self.fmt, transposed, offset)
        found = self.tensors.get(prefix + bare) or self.tensors.get(bare)
        if found is None:
            raise CheckpointError(
                f"the checkpoint lacks tensor '{prefix + bare}' that its config.json calls for"
                f"{did_you_mean(prefix + bare, self.tensors)}"
            )
        if found.shape != expected:
            raise CheckpointError(
                f"tensor '{found.name}' has shape {list(found.shape)}; "
                f"config.json calls for {list(expected)}"
            )
        return Source(found.name, expected, found.precision, transposed, offset, found.place)

    @staticmethod
    def _stored_shape(stored: Stored, kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        out = (shape[0] * stored.parts, *shape[1:])
        return out[::-1] if stored.transposed and kind == "weight" else out
