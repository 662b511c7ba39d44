"""llama.cpp's tensor names and row order → Hugging Face's."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_ROTATED = re.compile(r"blk\.\d+\.attn_([qk])\.(?:weight|bias)")

ROTARY_FACTORS = "rope_freqs.weight"


def hugging_face_name(name: str) -> str | None:
    """`blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight`; None if unknown."""
    block = _BLOCK.fullmatch(name)
    if block:
        layer, stem, kind = block.groups()
        return f"model.layers.{layer}.{_IN_BLOCK[stem]}.{kind}" if stem in _IN_BLOCK else None
    stem, _, kind = name.rpartition(".")
    return f"{_WHOLE[stem]}.{kind}" if stem in _WHOLE and kind == "weight" else None


def rotated_projection(name: str) -> str | None:
    """'q' or 'k' where llama.cpp permutes a llama model's rows, else None."""
    match = _ROTATED.fullmatch(name)
    return match.group(1) if match else None


def unpermute(rows: Array, heads: int) -> Array:
    """[heads * dim, ...] with interleaved rotary pairs → halves, as Hugging Face keeps them.

    Inverse of `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)
