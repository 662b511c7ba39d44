"""A Llama of 0.3 billion random bf16 weights: large enough that its weights come from memory, not
from a cache, small enough to make anywhere in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from parallel.conversion.cache import cache_directory, ensure_made

NAME = "random-llama-0.3b"
_SEED = 20240607
_DEVIATION = 0.02
CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def ensure_random_llama() -> Path:
    """Its directory in the user's cache; made on first use, the same weights everywhere."""
    stamp = {"seed": _SEED, "deviation": _DEVIATION, "config": CONFIG}
    return ensure_made(cache_directory() / "benchmarks" / NAME, stamp, _make)


def _make(scratch: Path, target: Path) -> None:
    generator = torch.Generator().manual_seed(_SEED)
    tensors = {}
    for name, shape in _shapes():
        if len(shape) == 1:
            tensors[name] = torch.ones(shape, dtype=torch.bfloat16)
        else:
            values = torch.randn(shape, generator=generator) * _DEVIATION
            tensors[name] = values.to(torch.bfloat16)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter's name and shape, matrices as [out, in]."""
    hidden, ffn, vocab, query, kv = 1024, 2816, 32000, 16 * 64, 4 * 64
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(24):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.self_attn.q_proj.weight", (query, hidden)
        yield f"{at}.self_attn.k_proj.weight", (kv, hidden)
        yield f"{at}.self_attn.v_proj.weight", (kv, hidden)
        yield f"{at}.self_attn.o_proj.weight", (hidden, query)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        yield f"{at}.mlp.gate_proj.weight", (ffn, hidden)
        yield f"{at}.mlp.up_proj.weight", (ffn, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)
