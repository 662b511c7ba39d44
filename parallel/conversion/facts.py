"""GGUF metadata → `config.json` and `generation_config.json` in Hugging Face's keys."""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import dequantize

from parallel.architecture.rotary import inverse_frequencies
from parallel.architecture.spec import Rotary, RotaryScaling
from parallel.conversion.names import ROTARY_FACTORS
from parallel.conversion.reader import GgufFile
from parallel.errors import CheckpointError

CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original": 8192}


def model_config(file: GgufFile) -> dict[str, Any]:
    """The keys of `config.json`. Raises `CheckpointError` for other architectures and experts."""
    kind = file.architecture
    if kind not in CLASSES:
        raise CheckpointError(
            f"{file.path}: GGUF architecture '{kind}' can't be converted; known: "
            f"{', '.join(CLASSES)}; give the Hugging Face directory of the model instead"
        )
    if file.integer(f"{kind}.expert_count", 0):
        raise CheckpointError(f"{file.path}: a mixture of experts can't be converted from GGUF yet")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{file.path} has no tensor 'token_embd.weight'; it holds no model")
    hidden = file.integer(f"{kind}.embedding_length")
    heads = file.integer(f"{kind}.attention.head_count")
    head_dim = file.integer(f"{kind}.attention.key_length", hidden // heads)
    context = file.integer(f"{kind}.context_length")
    config: dict[str, Any] = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": file.integer(f"{kind}.feed_forward_length"),
        "num_hidden_layers": file.integer(f"{kind}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.integer(f"{kind}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": file.number(f"{kind}.attention.layer_norm_rms_epsilon"),
        "rope_theta": file.number(f"{kind}.rope.freq_base", 10000.0),
        "max_position_embeddings": context,
        "vocab_size": int(embedding.shape[1]),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if kind != "qwen2":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    scaling = _rope_scaling(file, kind, config)
    if scaling:
        config["rope_scaling"] = scaling
    config |= _token_ids(file)
    return config


def generation_config(file: GgufFile) -> dict[str, Any]:
    """Stop ids: the end of sequence, and the end of turn where it is another token."""
    ids: dict[str, Any] = _token_ids(file)
    turn = file.token_id("eot")
    if turn is not None and turn != ids.get("eos_token_id", turn):
        ids["eos_token_id"] = [ids["eos_token_id"], turn]
    return ids


def _token_ids(file: GgufFile) -> dict[str, int]:
    roles = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    found = {key: file.token_id(role) for key, role in roles.items()}
    return {key: value for key, value in found.items() if value is not None}


def _rope_scaling(file: GgufFile, kind: str, config: dict[str, Any]) -> dict[str, Any] | None:
    if ROTARY_FACTORS in file.tensors:
        return _llama3_scaling(file, config)
    scaling = file.text(f"{kind}.rope.scaling.type", "none")
    if scaling == "none":
        return None
    if scaling not in ("linear", "yarn"):
        raise CheckpointError(
            f"{file.path}: rope scaling '{scaling}' can't be converted; known: linear, yarn, llama3"
        )
    facts: dict[str, Any] = {
        "rope_type": scaling,
        "factor": file.number(f"{kind}.rope.scaling.factor"),
    }
    if scaling == "yarn":
        original = file.integer(f"{kind}.rope.scaling.original_context_length")
        facts["original_max_position_embeddings"] = original
    return facts


def _llama3_scaling(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    """Llama 3's parameters, found again from the factors that llama.cpp keeps of them."""
    tensor = file.tensors[ROTARY_FACTORS]
    factors = dequantize(tensor.data, tensor.tensor_type)
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    original, factor = int(_LLAMA3["original"]), float(str(factors.max()))
    theta, dim = config["rope_theta"], config["head_dim"]
    stretched = inverse_frequencies(
        Rotary(theta, dim, RotaryScaling("llama3", factor, original, low, high))
    )
    expected = np.divide(inverse_frequencies(Rotary(theta, dim)), stretched)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise CheckpointError(
            f"{file.path}: its rope factors are not those of Llama 3 and can't be converted; "
            "give the Hugging Face directory of the model instead"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
