"""What a model is: one transformer described by facts, whatever its family.

Encoders, mixtures of experts and image-token decoders fit the same records (`causal`, `Experts`,
`norm_first`, several `Embedding`s); families differ in the facts and in the names that their
checkpoints use (`families.py`), never in a class of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from math import prod

from parallel.precision import Precision, precision


class Role(StrEnum):
    """What a parameter does in the transformer; how it may be split follows from it."""

    TOKEN_EMBEDDING = "token_embedding"
    POSITION_EMBEDDING = "position_embedding"
    ATTENTION_NORM = "attention_norm"
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    QUERY_NORM = "query_norm"
    KEY_NORM = "key_norm"
    ATTENTION_OUTPUT = "attention_output"
    FFN_NORM = "ffn_norm"
    GATE = "gate"
    UP = "up"
    DOWN = "down"
    FINAL_NORM = "final_norm"
    HEAD = "head"


@dataclass(frozen=True)
class Norm:
    """`kind` is 'rms' (weight alone) or 'layer' (weight and bias)."""

    kind: str
    epsilon: float


@dataclass(frozen=True)
class RotaryScaling:
    """How rotary frequencies are stretched: `kind` is 'linear', 'llama3' or 'yarn'."""

    kind: str
    factor: float
    original_context: int = 0
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding over the first `dim` channels of each head."""

    theta: float
    dim: int
    scaling: RotaryScaling | None = None


@dataclass(frozen=True)
class Attention:
    """`window` None sees the whole context, else the last `window` tokens, the own included."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    causal: bool = True
    window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    rotary: Rotary | None = None

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Experts:
    """Room for mixtures of experts: `active` of `count` are used per token."""

    count: int
    active: int


@dataclass(frozen=True)
class FeedForward:
    width: int
    activation: str
    gated: bool
    bias: bool = False
    experts: Experts | None = None


@dataclass(frozen=True)
class Block:
    attention: Attention
    feed_forward: FeedForward
    norm: Norm
    norm_first: bool = True


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie: a safetensors file and the byte range in it."""

    file: str
    start: int
    end: int


@dataclass(frozen=True)
class Source:
    """The stored tensor that a parameter comes from.

    `shape` is the stored one; `transposed` says that it holds [in, out]; a fused tensor holds
    several parameters: this one begins at `offset` of its output dimension."""

    name: str
    shape: tuple[int, ...]
    precision: Precision
    transposed: bool = False
    offset: int = 0
    place: Place | None = None


@dataclass(frozen=True)
class Parameter:
    """One logical parameter. `shape` is [out, in] for matrices, [rows, hidden] for embeddings."""

    role: Role
    layer: int | None
    kind: str
    shape: tuple[int, ...]
    source: Source

    @property
    def name(self) -> str:
        where = "" if self.layer is None else f"blocks.{self.layer}."
        return f"{where}{self.role.value}.{self.kind}"

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class ModelSpec:
    """A model's facts. `tied_head`: the head's matrix is the token embedding.

    `positions` is the number of learned positions, None where rotary facts do the work."""

    name: str
    family: str
    hidden: int
    vocabulary: int
    context_tokens: int
    blocks: tuple[Block, ...]
    final_norm: Norm
    tied_head: bool
    positions: int | None
    parameters: tuple[Parameter, ...]
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    @property
    def layers(self) -> int:
        return len(self.blocks)

    @cached_property
    def elements(self) -> int:
        """Parameters of the model, a tied head counted once."""
        return sum(p.elements for p in self.parameters)

    @cached_property
    def stored_precision(self) -> Precision:
        """The format that most of the checkpoint's bytes are in."""
        bytes_by_name: dict[str, int] = {}
        for p in self.parameters:
            fmt = p.source.precision
            bytes_by_name[fmt.name] = bytes_by_name.get(fmt.name, 0) + p.elements * fmt.bytes
        return precision(max(bytes_by_name, key=lambda n: bytes_by_name[n]))

    @cached_property
    def by_layer(self) -> tuple[tuple[Parameter, ...], ...]:
        """The parameters of each layer."""
        found: list[list[Parameter]] = [[] for _ in self.blocks]
        for p in self.parameters:
            if p.layer is not None:
                found[p.layer].append(p)
        return tuple(tuple(layer) for layer in found)

    @cached_property
    def alike(self) -> tuple[int, ...]:
        """For each layer the first one with the same block and shapes."""
        first: dict[object, int] = {}
        return tuple(
            first.setdefault((self.blocks[i], *((p.role, p.kind, p.shape) for p in layer)), i)
            for i, layer in enumerate(self.by_layer)
        )

    def of(self, role: Role, layer: int | None = None, kind: str = "weight") -> Parameter | None:
        return self._index.get((role, layer, kind))

    @cached_property
    def _index(self) -> dict[tuple[Role, int | None, str], Parameter]:
        return {(p.role, p.layer, p.kind): p for p in self.parameters}

    def renamed(self, name: str) -> ModelSpec:
        return replace(self, name=name)
