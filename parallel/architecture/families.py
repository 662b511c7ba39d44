"""The families known: how each spells its facts in `config.json` and names its tensors.

A family is a row of this table. Its `facts` function reads the config; `names` says which stored
tensor each role comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from parallel.architecture.rotary import read_rotary
from parallel.architecture.spec import Attention, Block, FeedForward, Norm, Role
from parallel.errors import CheckpointError

Config = Mapping[str, Any]

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class Facts:
    hidden: int
    vocabulary: int
    context_tokens: int
    blocks: tuple[Block, ...]
    final_norm: Norm
    tied_head: bool
    positions: int | None = None


@dataclass(frozen=True)
class Stored:
    """Where a role's tensors are: `name` without '.weight'/'.bias', `{i}` the layer.

    `part` of `parts` equal pieces of a fused tensor; `transposed` as in Conv1D."""

    name: str
    part: int = 0
    parts: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Family:
    facts: Callable[[Config], Facts]
    names: Mapping[Role, Stored]
    prefix: str


def required(config: Config, key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            f"config.json: '{key}' is {value!r}; a positive integer is needed for "
            f"model_type '{config.get('model_type')}'"
        )
    return value


def activation(config: Config, key: str, default: str) -> str:
    word = str(config.get(key) or default)
    if word not in ACTIVATIONS:
        raise CheckpointError(
            f"config.json: {key} '{word}' is not known; known: {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[word]


def _llama_facts(config: Config) -> Facts:
    hidden, heads = required(config, "hidden_size"), required(config, "num_attention_heads")
    layers = required(config, "num_hidden_layers")
    grouped = config.get("num_key_value_heads") is not None
    kv_heads = required(config, "num_key_value_heads") if grouped else heads
    head_dim = int(config.get("head_dim") or hidden // heads)
    if head_dim < 1:
        raise CheckpointError(
            f"config.json: hidden_size={hidden} gives {heads} attention heads no channel"
        )
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json: {heads} attention heads are not a multiple of {kv_heads} KV heads"
        )
    context = required(config, "max_position_embeddings")
    norm = Norm("rms", float(config.get("rms_norm_eps") or 1e-6))
    bias = bool(config.get("attention_bias", False))
    attention = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        qkv_bias=bias,
        output_bias=bias,
        rotary=read_rotary(config, head_dim, context),
    )
    feed_forward = FeedForward(
        width=required(config, "intermediate_size"),
        activation=activation(config, "hidden_act", "silu"),
        gated=True,
        bias=bool(config.get("mlp_bias", False)),
    )
    return Facts(
        hidden=hidden,
        vocabulary=required(config, "vocab_size"),
        context_tokens=context,
        blocks=tuple(Block(attention, feed_forward, norm) for _ in range(layers)),
        final_norm=norm,
        tied_head=bool(config.get("tie_word_embeddings", False)),
    )


def _each(facts: Facts, change: Callable[[int, Attention], Attention]) -> Facts:
    blocks = tuple(replace(b, attention=change(i, b.attention)) for i, b in enumerate(facts.blocks))
    return replace(facts, blocks=blocks)


def _mistral_facts(config: Config) -> Facts:
    # Keys that older configs leave out have other defaults here than in Llama's.
    facts = {"num_key_value_heads": 8, "sliding_window": 4096, **config}
    return _each(_llama_facts(facts), lambda _, a: replace(a, window=facts["sliding_window"]))


def _qwen_window(config: Config, layer: int) -> int | None:
    if not config.get("use_sliding_window", False):
        return None
    kinds = config.get("layer_types")
    if kinds:
        if layer >= len(kinds):
            raise CheckpointError(
                f"config.json: layer_types names {len(kinds)} layers, layer {layer} is not there"
            )
        sliding = kinds[layer] == "sliding_attention"
    else:
        sliding = layer >= int(config.get("max_window_layers", 28))
    window = config.get("sliding_window", 4096)
    return int(window) if sliding and window is not None else None


def _qwen2_facts(config: Config) -> Facts:
    return _each(
        _llama_facts(config),
        lambda i, a: replace(a, qkv_bias=True, output_bias=False, window=_qwen_window(config, i)),
    )


def _qwen3_facts(config: Config) -> Facts:
    with_dim = {"head_dim": 128, **{k: v for k, v in config.items() if v is not None}}
    return _each(
        _llama_facts(with_dim),
        lambda i, a: replace(a, qk_norm=True, window=_qwen_window(config, i)),
    )


def _gpt2_facts(config: Config) -> Facts:
    for key in ("add_cross_attention", "reorder_and_upcast_attn"):
        if config.get(key):
            raise CheckpointError(f"config.json: {key}=true is not supported for GPT-2")
    hidden, heads, layers = (required(config, k) for k in ("n_embd", "n_head", "n_layer"))
    if hidden % heads:
        raise CheckpointError(f"config.json: n_embd={hidden} is not a multiple of n_head={heads}")
    head_dim = hidden // heads
    norm = Norm("layer", float(config.get("layer_norm_epsilon") or 1e-5))
    scale = head_dim**-0.5 if config.get("scale_attn_weights", True) else 1.0
    by_layer = bool(config.get("scale_attn_by_inverse_layer_idx", False))
    feed_forward = FeedForward(
        width=int(config.get("n_inner") or 4 * hidden),
        activation=activation(config, "activation_function", "gelu_new"),
        gated=False,
        bias=True,
    )
    blocks = tuple(
        Block(
            Attention(
                heads=heads,
                kv_heads=heads,
                head_dim=head_dim,
                scale=scale / (i + 1) if by_layer else scale,
                qkv_bias=True,
                output_bias=True,
            ),
            feed_forward,
            norm,
        )
        for i in range(layers)
    )
    context = required(config, "n_positions")
    return Facts(
        hidden=hidden,
        vocabulary=required(config, "vocab_size"),
        context_tokens=context,
        blocks=blocks,
        final_norm=norm,
        tied_head=bool(config.get("tie_word_embeddings", True)),
        positions=context,
    )


_LLAMA_NAMES = {
    Role.TOKEN_EMBEDDING: Stored("embed_tokens"),
    Role.ATTENTION_NORM: Stored("layers.{i}.input_layernorm"),
    Role.QUERY: Stored("layers.{i}.self_attn.q_proj"),
    Role.KEY: Stored("layers.{i}.self_attn.k_proj"),
    Role.VALUE: Stored("layers.{i}.self_attn.v_proj"),
    Role.QUERY_NORM: Stored("layers.{i}.self_attn.q_norm"),
    Role.KEY_NORM: Stored("layers.{i}.self_attn.k_norm"),
    Role.ATTENTION_OUTPUT: Stored("layers.{i}.self_attn.o_proj"),
    Role.FFN_NORM: Stored("layers.{i}.post_attention_layernorm"),
    Role.GATE: Stored("layers.{i}.mlp.gate_proj"),
    Role.UP: Stored("layers.{i}.mlp.up_proj"),
    Role.DOWN: Stored("layers.{i}.mlp.down_proj"),
    Role.FINAL_NORM: Stored("norm"),
    Role.HEAD: Stored("lm_head"),
}

_GPT2_NAMES = {
    Role.TOKEN_EMBEDDING: Stored("wte"),
    Role.POSITION_EMBEDDING: Stored("wpe"),
    Role.ATTENTION_NORM: Stored("h.{i}.ln_1"),
    Role.QUERY: Stored("h.{i}.attn.c_attn", part=0, parts=3, transposed=True),
    Role.KEY: Stored("h.{i}.attn.c_attn", part=1, parts=3, transposed=True),
    Role.VALUE: Stored("h.{i}.attn.c_attn", part=2, parts=3, transposed=True),
    Role.ATTENTION_OUTPUT: Stored("h.{i}.attn.c_proj", transposed=True),
    Role.FFN_NORM: Stored("h.{i}.ln_2"),
    Role.UP: Stored("h.{i}.mlp.c_fc", transposed=True),
    Role.DOWN: Stored("h.{i}.mlp.c_proj", transposed=True),
    Role.FINAL_NORM: Stored("ln_f"),
    Role.HEAD: Stored("lm_head"),
}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(_llama_facts, _LLAMA_NAMES, "model."),
    "mistral": Family(_mistral_facts, _LLAMA_NAMES, "model."),
    "qwen2": Family(_qwen2_facts, _LLAMA_NAMES, "model."),
    "qwen3": Family(_qwen3_facts, _LLAMA_NAMES, "model."),
    "gpt2": Family(_gpt2_facts, _GPT2_NAMES, "transformer."),
}
