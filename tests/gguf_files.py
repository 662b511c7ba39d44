"""Small GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Quant
from gguf import GGUFWriter
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from parallel.conversion.gguf import convert_gguf

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, CONTEXT = 64, 96, 4, 2, 16, 2, 128
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
CORPUS = ["the cat sat on the mat 1234", "thé naïve 日本語 cat's mat", "on and on\n\n  sat 🙂 56"]


def small_tokenizer() -> Tokenizer:
    """Cut as SmolLM's: digits one by one, then bytes."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<u>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<u>", "<s>", "</s>")])
    return tokenizer


TOKENIZER = small_tokenizer()
VOCABULARY = TOKENIZER.get_vocab_size()


def llama_cpp_permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """As convert_hf_to_gguf.py does to q and k."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def small_model() -> LlamaForCausalLM:
    """Random, its weights exact in bf16; the head is tied."""
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        num_hidden_layers=LAYERS,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_((weight + 0.2 * torch.randn_like(weight)).bfloat16())
    return model


GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}
GGUF_IN_BLOCK = {
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


def gguf_name(name: str) -> str:
    if name in GGUF_NAMES:
        return GGUF_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_IN_BLOCK[stem]}.{kind}"


def model_tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    tensors = {}
    for name, weight in model.named_parameters():
        values = weight.detach().numpy()
        if "q_proj" in name:
            values = llama_cpp_permute(values, HEADS)
        if "k_proj" in name:
            values = llama_cpp_permute(values, KV_HEADS)
        tensors[gguf_name(name)] = np.ascontiguousarray(values)
    return tensors


def write_gguf(
    path: Path,
    tensors: dict[str, np.ndarray],
    quants: dict[str, Quant] | None = None,
    architecture: str = "llama",
    pre: str = "smollm",
) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    words = sorted(TOKENIZER.get_vocab(), key=TOKENIZER.get_vocab().__getitem__)
    merges = json.loads(TOKENIZER.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(words))])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, values in tensors.items():
        quant = (quants or {}).get(name, Quant.F32)
        if quant is Quant.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quantize(values, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_tensors(bias: bool = False) -> dict[str, np.ndarray]:
    """A model's tensors with random values, without and with q, k and v biases."""
    rng = np.random.default_rng(1)
    shapes = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        block = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HEADS * HEAD_DIM, HIDDEN),
            "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_output": (HIDDEN, HEADS * HEAD_DIM),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (FFN, HIDDEN),
            "ffn_up": (FFN, HIDDEN),
            "ffn_down": (HIDDEN, FFN),
        }
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
        if bias:
            heads = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
            shapes |= {f"blk.{i}.attn_{x}.bias": (n * HEAD_DIM,) for x, n in heads.items()}
    return {n: rng.standard_normal(s, dtype=np.float32) for n, s in shapes.items()}


@dataclass(frozen=True)
class Small:
    """A random model, its GGUF, and the directory converted from that."""

    model: LlamaForCausalLM
    gguf: Path
    directory: Path


def convert_small(root: Path) -> Small:
    model = small_model()
    path = write_gguf(root / "small.gguf", model_tensors(model))
    directory = root / "converted"
    directory.mkdir()
    convert_gguf(path, directory, progress=False)
    return Small(model, path, directory)
