"""One transformer for every family, written as if for one device.

T tokens of the step, h hidden, R rows to sample, V vocabulary. The layers that the builder gives
know which part of a matrix is theirs; the model doesn't.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from parallel.architecture.spec import Attention, FeedForward, Role
from parallel.kernels.cache import KVCache, LayerCache
from parallel.kernels.elementwise import Normalization
from parallel.kernels.step import StepInput
from parallel.sharding.builder import LayerBuilder


class AttentionLayer:
    def __init__(self, facts: Attention, layer: int, build: LayerBuilder):
        heads = build.local_heads(layer)
        self.queries, self.keys = len(heads.queries), len(heads.kv)
        self.head_dim = facts.head_dim
        self.project = build.column([Role.QUERY, Role.KEY, Role.VALUE], layer, "attention")
        self.query_norm = build.head_norm(Role.QUERY_NORM, layer)
        self.key_norm = build.head_norm(Role.KEY_NORM, layer)
        self.rotary = build.rotary(layer)
        self.attend = build.attention(layer)
        self.output = build.row(Role.ATTENTION_OUTPUT, layer, "attention")

    def __call__(self, x: torch.Tensor, cache: LayerCache, step: StepInput) -> torch.Tensor:
        projected = self.project(x)
        heads = projected.view(projected.shape[0], -1, self.head_dim)
        mixed, value = heads.split([self.queries + self.keys, self.keys], dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = mixed.split([self.queries, self.keys], dim=1)
            mixed = torch.cat((self.query_norm(query), self.key_norm(key)), dim=1)
        if self.rotary is not None:
            mixed = self.rotary(mixed, step)
        query, key = mixed.split([self.queries, self.keys], dim=1)
        out = self.attend(query, key, value, cache, step)
        return self.output(out.reshape(out.shape[0], -1))


class FeedForwardLayer:
    def __init__(self, facts: FeedForward, layer: int, build: LayerBuilder):
        self.activate = build.activation(facts)
        self.up = build.column([Role.GATE, Role.UP] if facts.gated else [Role.UP], layer, "ffn")
        self.down = build.row(Role.DOWN, layer, "ffn")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.activate(self.up(x)))


@dataclass
class Stream:
    """The hidden states [T, h] between blocks: `residual`, and the `branch` that isn't added to it
    yet, so that sum and norm may be one kernel. Whoever takes a stream on may write over it."""

    residual: torch.Tensor
    branch: torch.Tensor | None = None

    def normed(self, norm: Normalization) -> torch.Tensor:
        """The norm of the sum; the branch is in the residual from here on."""
        if self.branch is None:
            return norm(self.residual)
        normed, self.residual = norm.add(self.residual, self.branch)
        self.branch = None
        return normed

    def total(self) -> torch.Tensor:
        return self.residual if self.branch is None else self.residual.add_(self.branch)


class TransformerBlock:
    def __init__(self, layer: int, build: LayerBuilder):
        facts = build.spec.blocks[layer]
        self.layer = layer
        self.attention_norm = build.norm(Role.ATTENTION_NORM, layer)
        self.attention = AttentionLayer(facts.attention, layer, build)
        self.ffn_norm = build.norm(Role.FFN_NORM, layer)
        self.feed_forward = FeedForwardLayer(facts.feed_forward, layer, build)

    def __call__(self, stream: Stream, cache: LayerCache, step: StepInput) -> None:
        """Takes the stream through this layer."""
        stream.branch = self.attention(stream.normed(self.attention_norm), cache, step)
        stream.branch = self.feed_forward(stream.normed(self.ffn_norm))


RunBlock = Callable[[TransformerBlock, Stream, LayerCache, StepInput], None]


class Transformer:
    """The layers of one stage: the first one embeds, the last one gives logits. `run_block` runs
    one block; who wants to look on puts another in its place."""

    def __init__(self, build: LayerBuilder):
        stage = build.stage
        self.run_block: RunBlock = TransformerBlock.__call__
        self.tokens = build.tokens
        self.embedding = build.token_embedding()
        self.positions = build.position_embedding()
        self.blocks = [TransformerBlock(i, build) for i in stage.layers]
        self.final_norm = build.norm(Role.FINAL_NORM) if stage.head else None
        self.head = build.head()

    @property
    def constant_bytes(self) -> int:
        """Tensors that layers keep beside their weights."""
        layers = [block.attention for block in self.blocks]
        held = [layer.attend.slots for layer in layers]
        held += [None if layer.rotary is None else layer.rotary.frequencies for layer in layers]
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    def __call__(
        self, step: StepInput, cache: KVCache, hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Hidden states [T, h], from `hidden` of the stage before, which is written over, or from
        the step's ids."""
        self.tokens.begin(step.tokens)
        stream = Stream(self._embedded(step) if hidden is None else self.tokens.own(hidden))
        for block in self.blocks:
            self.run_block(block, stream, cache.layers[block.layer], step)
        return self.tokens.whole(stream.total(), "stage")

    def _embedded(self, step: StepInput) -> torch.Tensor:
        assert self.embedding is not None, "a later stage needs the hidden states of the one before"
        hidden = self.embedding(step.token_ids)
        if self.positions is None:
            return hidden
        return hidden.add_(self.positions.index_select(0, self.tokens.own(step.positions)))

    def logits(self, hidden: torch.Tensor, step: StepInput) -> torch.Tensor:
        """[R, V] in float32 for the rows that are sampled."""
        assert self.final_norm is not None and self.head is not None
        return self.head(self.final_norm(hidden.index_select(0, step.logit_rows)))
