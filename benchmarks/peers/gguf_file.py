"""A Llama checkpoint as a GGUF file with the same bf16 weights: what llama.cpp reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from numpy.typing import NDArray
from safetensors import safe_open

from parallel.conversion.cache import cache_directory, ensure_made

_REVISION = 1
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def ensure_gguf(model: Path) -> Path:
    """The file in the user's cache, made on first use."""
    source = model / "model.safetensors"
    stamp = {"source": str(source), "bytes": source.stat().st_size, "revision": _REVISION}
    directory = cache_directory() / "benchmarks" / f"{model.name}-gguf"
    made = ensure_made(directory, stamp, lambda _, target: write_gguf(model, target / "model.gguf"))
    return made / "model.gguf"


def write_gguf(model: Path, path: Path) -> None:
    """Matrices in bf16, vectors in fp32, as llama.cpp's own converter stores them."""
    config = json.loads((model / "config.json").read_text())
    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, json.loads((model / "tokenizer.json").read_text()), config)
    with safe_open(model / "model.safetensors", framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a mapping)
            _add_tensor(writer, name, tensors.get_tensor(name), config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: GGUFWriter, tokenizer: Any, config: Any) -> None:
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    ids = {i: text for text, i in tokenizer["model"]["vocab"].items()} | special
    size = config["vocab_size"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([ids[i] for i in range(size)])
    kinds = (TokenType.CONTROL if i in special else TokenType.NORMAL for i in range(size))
    writer.add_token_types([int(kind) for kind in kinds])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def _add_tensor(writer: GGUFWriter, name: str, tensor: torch.Tensor, config: Any) -> None:
    if tensor.dim() == 1:
        writer.add_tensor(gguf_name(name), tensor.float().numpy())
        return
    if ".q_proj." in name:
        tensor = interleaved(tensor, config["num_attention_heads"])
    elif ".k_proj." in name:
        tensor = interleaved(tensor, config["num_key_value_heads"])
    words: NDArray[np.uint16] = tensor.contiguous().view(torch.uint16).numpy()
    writer.add_tensor(gguf_name(name), words.view(np.uint8), raw_dtype=GGMLQuantizationType.BF16)


def gguf_name(name: str) -> str:
    """llama.cpp's name of a parameter."""
    if name in _NAMES:
        return _NAMES[name]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows [heads · d, in] from rotary halves side by side to the pairs that llama.cpp turns."""
    rows, width = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, width)
    return halves.transpose(1, 2).reshape(rows, width)
