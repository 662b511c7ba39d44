"""Llamas of random bf16 weights, made in seconds in the user's cache.

The usual one has 0.3 billion: large enough that its weights come from memory, not from a cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from parallel.conversion.cache import cache_directory, ensure_made
from parallel.text.vocabulary import byte_alphabet

_SEED = 20240607
_DEVIATION = 0.02
_HEAD_DIM = 64


@dataclass(frozen=True)
class Llama:
    """`name` is its directory's; widths in elements."""

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000
    context_tokens: int = 2048

    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": _HEAD_DIM,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": self.context_tokens,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every parameter's name and shape, matrices as [out, in]."""
        hidden, ffn, vocab = self.hidden, self.ffn, self.vocabulary
        query, kv = self.heads * _HEAD_DIM, self.kv_heads * _HEAD_DIM
        yield "model.embed_tokens.weight", (vocab, hidden)
        for layer in range(self.layers):
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


LLAMA_300M = Llama("random-llama-0.3b", layers=24, hidden=1024, ffn=2816, heads=16, kv_heads=4)
LLAMA_TINY = Llama("random-llama-tiny", 2, 128, 256, heads=2, kv_heads=2, vocabulary=2048)
"""To see that something works at all, where nothing is timed."""


def ensure_random_llama(llama: Llama = LLAMA_300M) -> Path:
    """Its directory in the user's cache; made on first use, the same weights everywhere."""
    stamp = {"revision": 3, "seed": _SEED, "deviation": _DEVIATION, "config": llama.config()}
    return ensure_made(
        cache_directory() / "benchmarks" / llama.name,
        stamp,
        lambda _, target: _make(llama, target),
    )


def _make(llama: Llama, target: Path) -> None:
    generator = torch.Generator().manual_seed(_SEED)
    tensors = {}
    for name, shape in llama.shapes():
        if len(shape) == 1:
            tensors[name] = torch.ones(shape, dtype=torch.bfloat16)
        else:
            values = torch.randn(shape, generator=generator) * _DEVIATION
            tensors[name] = values.to(torch.bfloat16)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(llama.config(), indent=2) + "\n")
    (target / "tokenizer.json").write_text(json.dumps(make_tokenizer(llama.vocabulary)))


def make_tokenizer(size: int) -> dict[str, object]:
    """A byte-level BPE of `size` tokens: three special ones, every byte, then pairs and triples of
    printable characters, so that whatever is sampled can be shown at once."""
    special = ["<unk>", "<s>", "</s>"]
    alphabet = byte_alphabet()
    letters = [chr(code) for code in range(33, 127)]
    pairs = [first + second for first, second in product(letters, letters)]
    longer = islice(
        chain(pairs, (pair + letter for pair in pairs for letter in letters)),
        size - len(special) - len(alphabet),
    )
    joined = list(longer)
    edges = {"trim_offsets": True}
    tokens = [*special, *alphabet, *joined]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": text, "special": True, "single_word": False, "lstrip": False}
            | {"rstrip": False, "normalized": False}
            for i, text in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        | edges,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True} | edges,
        "model": {
            "type": "BPE",
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": [[text[:-1], text[-1]] for text in joined],
        },
    }
