"""Builds the layers of one rank from its layout: the model asks by role, as if for one device."""

from __future__ import annotations

import torch

from parallel.architecture.spec import FeedForward, ModelSpec, Role
from parallel.collectives.communicator import Communicator
from parallel.kernels.attention import AttentionBackend
from parallel.kernels.attention_choice import choose_attention
from parallel.kernels.attention_form import Wanted
from parallel.kernels.elementwise import FeedForwardActivation, Normalization
from parallel.kernels.elementwise_choice import choose_elementwise
from parallel.kernels.linear import Linear, Table
from parallel.kernels.rotary import RotaryEmbedding
from parallel.layout.heads import RankHeads
from parallel.sharding.layers import ColumnLinear, RowLinear, VocabularyEmbedding, VocabularyHead
from parallel.sharding.tokens import TokenSplit
from parallel.sharding.weights import Weights


class LayerBuilder:
    """`tp` is the communicator of this rank's tensor-parallel axis, `attention` the form asked for
    (`EngineLimits.attention`), `cache` the format of keys and values (None: the weights') in blocks
    of `block_tokens`; steps of `split_tokens` tokens and more are split over the axis."""

    def __init__(
        self,
        weights: Weights,
        tp: Communicator,
        attention: str = "auto",
        cache: torch.dtype | None = None,
        block_tokens: int = 16,
        split_tokens: int | None = None,
    ):
        self.weights, self.tp = weights, tp
        self.tokens = TokenSplit(tp, split_tokens)
        self._attention, self._cache, self._block_tokens = attention, cache, block_tokens
        self._elementwise = choose_elementwise(weights.device, weights.dtype)
        self.attention_forms: dict[str, str] = {}
        """The forms of attention that layers got, and why."""
        self.layout = weights.layout
        self.spec: ModelSpec = weights.layout.spec
        self.stage = weights.stage
        self._table: Table | None = None
        self._linears: list[Linear] = []

    def token_embedding(self) -> VocabularyEmbedding | None:
        if not self.stage.embedding:
            return None
        at = self.weights.coordinates
        rows = self.layout.vocabulary(at.pp)[at.tp]
        return VocabularyEmbedding(self._embedding_table(), rows, self.tokens)

    def position_embedding(self) -> torch.Tensor | None:
        """[positions, h], or None where positions are rotary."""
        return self.weights.take(Role.POSITION_EMBEDDING)

    def head(self) -> VocabularyHead | None:
        if not self.stage.head:
            return None
        if self.spec.tied_head:
            # What isn't looked up here is a weight like others.
            if self.stage.embedding:
                linear = self._packable(self._embedding_table())
            else:
                linear = self._linear(self._held(Role.TOKEN_EMBEDDING), None)
        else:
            linear = self._linear(self._held(Role.HEAD), None)
        pieces = self.layout.vocabulary(self.weights.coordinates.pp)
        return VocabularyHead(linear, pieces, self.tp)

    def norm(self, role: Role, layer: int | None = None) -> Normalization:
        facts = self.spec.final_norm if layer is None else self.spec.blocks[layer].norm
        bias = self.weights.take(role, layer, "bias")
        return self._elementwise.norm(facts, self._held(role, layer), bias)

    def head_norm(self, role: Role, layer: int) -> Normalization | None:
        """The norm over each query's or key's channels, where the family has one."""
        weight = self.weights.take(role, layer)
        if weight is None:
            return None
        return self._elementwise.norm(self.spec.blocks[layer].norm, weight, None)

    def column(self, roles: list[Role], layer: int, kind: str) -> ColumnLinear:
        bias = self.weights.take(roles, layer, "bias")
        return ColumnLinear(self._linear(self._held(roles, layer), bias), self.tokens, kind)

    def row(self, role: Role, layer: int, kind: str) -> RowLinear:
        bias = self.weights.take(role, layer, "bias")
        return RowLinear(self._linear(self._held(role, layer), bias), self.tokens, kind)

    def activation(self, facts: FeedForward) -> FeedForwardActivation:
        return self._elementwise.activation(facts.activation, facts.gated)

    def attention(self, layer: int) -> AttentionBackend:
        weights = self.weights
        wanted = Wanted(
            self.spec.blocks[layer].attention,
            self.local_heads(layer),
            weights.device,
            compute=weights.dtype,
            cache=self._cache or weights.dtype,
            block_tokens=self._block_tokens,
        )
        form, reason = choose_attention(wanted, self._attention)
        self.attention_forms[form.name] = reason
        return form.make(wanted)

    def rotary(self, layer: int) -> RotaryEmbedding | None:
        rotary = self.spec.blocks[layer].attention.rotary
        return None if rotary is None else self._elementwise.rotary(rotary, self._device)

    def local_heads(self, layer: int) -> RankHeads:
        attention = self.spec.blocks[layer].attention
        return self.layout.rank_heads(attention, self.weights.coordinates)

    def pack(self) -> None:
        """Once the weights are filled: gives each product to the device in its fastest form."""
        self.weights.targets.clear()
        self._table = None
        for linear in self._linears:
            weight, packed = linear.weight, linear.pack(self.weights.device)
            if weight is not None and packed is not None:
                self.weights.replace(weight, packed)

    def _linear(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        return self._packable(Linear(weight, bias))

    def _packable(self, linear: Linear) -> Linear:
        self._linears.append(linear)
        return linear

    @property
    def _device(self) -> torch.device:
        return self.weights.device.torch_device

    def _embedding_table(self) -> Table:
        if self._table is None:
            self._table = Table(self._held(Role.TOKEN_EMBEDDING))
        return self._table

    def _held(self, roles: Role | list[Role], layer: int | None = None) -> torch.Tensor:
        tensor = self.weights.take(roles, layer)
        assert tensor is not None, f"{roles} of layer {layer} is not on this rank"
        return tensor
