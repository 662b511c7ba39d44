"""Random small checkpoints of every family, written by transformers, and what it makes of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

SMALL: dict[str, Any] = {
    "hidden_size": 80,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 1,
    "vocab_size": 503,
    "max_position_embeddings": 256,
    "eos_token_id": None,
    "bos_token_id": None,
}
GROUPED = {**SMALL, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-5-heads-1-kv": ("Llama", SMALL),
    "llama3-rope": ("Llama", {**GROUPED, "rope_parameters": LLAMA3_ROPE}),
    "llama-yarn": ("Llama", {**GROUPED, "rope_parameters": YARN_ROPE}),
    "llama-25-heads": (
        "Llama",
        {**SMALL, "hidden_size": 200, "num_attention_heads": 25, "num_key_value_heads": 5},
    ),
    "llama-vocabulary-32003": (
        "Llama",
        {**GROUPED, "vocab_size": 32003, "num_hidden_layers": 3, "attention_bias": True},
    ),
    "mistral-window": ("Mistral", {**GROUPED, "sliding_window": 9, "head_dim": 20}),
    "qwen2-tied-window": (
        "Qwen2",
        {
            **GROUPED,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 2,
        },
    ),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 24}),
    "gpt2": (
        "GPT2",
        {
            "vocab_size": 503,
            "n_positions": 256,
            "n_embd": 80,
            "n_layer": 4,
            "n_head": 5,
            "eos_token_id": None,
            "bos_token_id": None,
        },
    ),
}


@cache
def make_checkpoint(name: str, directory: Path, dtype: str = "float32") -> Path:
    family, settings = CONFIGS[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    kind = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Far from the near-zero start: biases and norms must show in the results.
            parameter.add_(torch.randn_like(parameter) * 0.05)
    path = directory / f"{name}-{dtype}"
    model.to(getattr(torch, dtype)).save_pretrained(path)
    return path


@cache
def reference_model(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@cache
@torch.inference_mode()
def reference(path: Path, prompt: tuple[int, ...], tokens: int) -> tuple[torch.Tensor, list[int]]:
    """Logits of the prompt's last token [V], and the greedy continuation; computed once, since
    every layout is compared with them."""
    model = reference_model(path)
    ids = torch.tensor([prompt])
    logits = model(ids).logits[0, -1]
    out = model.generate(
        ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return logits, out[0, len(prompt) :].tolist()
