"""Config and tensor headers → spec: every fact against transformers, every damage named."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from parallel.architecture.checkpoint import build_spec
from parallel.architecture.families import FAMILIES
from parallel.architecture.rotary import inverse_frequencies, read_rotary
from parallel.architecture.spec import Role
from parallel.errors import CheckpointError
from parallel.precision import precision
from tests.specs import Config, llama31_config, small_config, small_spec

SMALL = {
    "vocab_size": 53,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "llama-biases": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "llama-tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "mistral": MistralConfig(**SMALL, head_dim=12, sliding_window=9),
    "qwen2": Qwen2Config(**SMALL),
    "qwen2-tied": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, head_dim=16),
    "gpt2": GPT2Config(vocab_size=53, n_positions=64, n_embd=40, n_layer=2, n_head=5),
    "gpt2-untied": GPT2Config(
        vocab_size=53, n_positions=64, n_embd=40, n_layer=2, n_head=5, tie_word_embeddings=False
    ),
}


# ---------------------------------------------------------------------------- families


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_transformers(name: str) -> None:
    config = MODELS[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    spec = build_spec(config.to_dict(), None, name)
    assert spec.elements == sum(p.numel() for p in model.parameters())
    assert {p.source.name: p.source.shape for p in spec.parameters} == {
        n: tuple(p.shape) for n, p in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("hidden", "width", "layers", "heads", "elements"),
    [(8192, 28672, 80, 64, 70_553_706_496), (16384, 53248, 126, 128, 405_853_388_800)],
    ids=["70B", "405B"],
)
def test_published_counts_of_llama_3_1(
    hidden: int, width: int, layers: int, heads: int, elements: int
) -> None:
    config = llama31_config(layers, hidden, heads, width)
    spec = build_spec(config, None, "Llama-3.1")
    assert spec.elements == elements
    assert spec.stored_precision == precision("bf16")
    attention = spec.blocks[0].attention
    assert (attention.head_dim, attention.group) == (128, heads // 8)


def test_facts_of_each_family() -> None:
    qwen3 = small_spec("qwen3").blocks[0].attention
    assert qwen3.qk_norm and not qwen3.qkv_bias
    qwen2 = small_spec("qwen2").blocks[0].attention
    assert qwen2.qkv_bias and not qwen2.output_bias and not qwen2.qk_norm
    mistral = small_spec("mistral", sliding_window=9).blocks[0].attention
    assert mistral.window == 9
    gpt2 = small_spec("gpt2")
    assert gpt2.positions == 64 and gpt2.tied_head and gpt2.blocks[0].attention.rotary is None
    assert gpt2.blocks[0].feed_forward.width == 160
    query, key = gpt2.of(Role.QUERY, 1), gpt2.of(Role.KEY, 1)
    assert query is not None and key is not None
    assert query.source.transposed and query.source.shape == (40, 120)
    assert (query.source.offset, key.source.offset) == (0, 40)
    assert (query.name, query.shape) == ("blocks.1.query.weight", (40, 40))


def test_head_dim_of_qwen3_and_head_scale() -> None:
    config = small_config("qwen3", head_dim=None)
    attention = build_spec(config, None, "any").blocks[0].attention
    assert (attention.head_dim, attention.scale) == (128, 128**-0.5)
    scaled = small_spec("gpt2", scale_attn_by_inverse_layer_idx=True)
    assert [b.attention.scale for b in scaled.blocks] == [8**-0.5 / n for n in (1, 2, 3)]


@pytest.mark.parametrize("by_kinds", [False, True])
def test_windows_of_qwen_by_layer(by_kinds: bool) -> None:
    config = Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=7, max_window_layers=1)
    facts = config.to_dict()
    if not by_kinds:
        del facts["layer_types"]
    windows = [b.attention.window for b in build_spec(facts, None, "any").blocks]
    assert windows == [None, 7]
    off = build_spec({**facts, "use_sliding_window": False}, None, "any")
    assert {b.attention.window for b in off.blocks} == {None}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "lama"}, "did you mean 'llama'"),
        ({"model_type": "bert"}, f"known: {', '.join(FAMILIES)}"),
        (small_config(hidden_size=0), "'hidden_size' is 0; a positive integer"),
        (small_config(hidden_size=True), "'hidden_size' is True"),
        (small_config(vocab_size=None), "'vocab_size' is None"),
        (small_config(num_key_value_heads=4), "6 attention heads are not a multiple of 4"),
        (small_config(hidden_act="mish"), "hidden_act 'mish' is not known"),
        (small_config(rope_scaling={"type": "longrope"}), "rope type 'longrope' is not known"),
        (small_config(rope_scaling={"type": "linear"}), "rope type 'linear' needs a 'factor'"),
        (
            small_config(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
            "needs a 'low_freq_factor'",
        ),
        (small_config(quantization_config={"bits": 4}), "quantised checkpoints"),
        (small_config("gpt2", n_embd=41), "n_embd=41 is not a multiple of n_head=5"),
        (small_config("gpt2", add_cross_attention=True), "add_cross_attention"),
    ],
)
def test_configs_that_are_refused(config: Config, words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        build_spec(config, None, "any")
    assert words in str(caught.value)


# ---------------------------------------------------------------------------- rotary


ROPES: dict[str, Config] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
    },
    "yarn-given": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "attention_factor": 1.25,
    },
}


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("name", ROPES)
def test_frequencies_are_those_of_transformers(name: str, theta: float) -> None:
    facts = {"rope_type": name, "rope_theta": theta, **ROPES[name]}
    wide = {**SMALL, "hidden_size": 384, "max_position_embeddings": 512}
    theirs = LlamaRotaryEmbedding(LlamaConfig(**wide, rope_parameters=facts))
    older = {k: v for k, v in facts.items() if k != "rope_theta"}
    spelled: list[Config] = [
        {"rope_parameters": facts},
        {"rope_theta": theta, "rope_scaling": older},
    ]
    for config in spelled:
        rotary = read_rotary(config, 64, 512)
        assert inverse_frequencies(rotary) == pytest.approx(theirs.inv_freq.tolist(), rel=2e-6)
        amplitude = rotary.scaling.attention_factor if rotary.scaling else 1.0
        assert amplitude == pytest.approx(theirs.attention_scaling)


def test_rotary_over_a_part_of_the_head() -> None:
    rotary = read_rotary({"partial_rotary_factor": 0.25}, 64, 512)
    assert rotary.dim == 16
    assert len(inverse_frequencies(rotary)) == 8
    yarn = read_rotary(
        {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 128}}, 64, 512
    )
    assert yarn.scaling is not None
    assert yarn.scaling.factor == 4
    assert yarn.scaling.attention_factor == pytest.approx(0.1 * math.log(4) + 1)


def test_heads_without_a_channel() -> None:
    with pytest.raises(CheckpointError, match="no channel"):
        build_spec(small_config(hidden_size=3, num_attention_heads=4, head_dim=None), None, "x")
